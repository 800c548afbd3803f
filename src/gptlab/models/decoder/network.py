"""The decoder-only transformer: GPT-1 to GPT-3, Llama, Mixtral and what lies between."""

import torch
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.decoder.config import DecoderConfig, Norm, NormPlacement, Position
from gptlab.nn.attention import Attention
from gptlab.nn.block import Block, PostNormBlock
from gptlab.nn.cache import KVCache
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import LMHead
from gptlab.nn.mask import causal_band
from gptlab.nn.moe import Auxiliary, ExpertBlock, MoE, Routing, auxiliary
from gptlab.nn.norm import LayerNorm, RMSNorm
from gptlab.nn.position import Rotary


class Decoder(nn.Module):
    """Predicts each token from those before it."""

    def __init__(self, config: DecoderConfig, vocab_size: int):
        super().__init__()
        c = self.config = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self.pos_emb = nn.Embedding(c.context_length, c.d_model) if c.position is Position.learned else None
        rotary = c.position is Position.rotary
        self.rotary = Rotary(c.head_width, c.context_length, theta=c.rope_theta) if rotary else None
        self.drop = nn.Dropout(c.dropout_at("embedding"))
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.n_layer))
        self.final_norm = _norm(c) if c.norm_placement is NormPlacement.pre else None
        self._routings: list[Routing] = []  # of the newest `hidden`, by block
        self.lm_head = None if c.tie_embeddings else nn.Linear(c.d_model, vocab_size, bias=False)

    def hidden_states(self, tokens: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """What the head reads: tokens (B, T) -> (B, T, D); with a cache they go on from what it holds, and into it."""
        n_tokens = tokens.shape[-1]
        if cache is None:
            if n_tokens > self.config.context_length:
                raise UserError(
                    f"{n_tokens} tokens do not fit model.context_length={self.config.context_length}; "
                    f"crop the input or set model.context_length={n_tokens}"
                )
            positions = torch.arange(n_tokens, device=tokens.device)
            sights = self._attention_mask_args(positions)
        else:
            cache.read(n_tokens, tokens.device)
            positions = cache.positions
            sights = [cache.attention_mask_args(i, self.config.window_of(i)) for i in range(self.config.n_layer)]
        x = self.tok_emb(tokens)  # (B, T, D)
        if self.pos_emb is not None:
            x = x + self.pos_emb(positions)
        x = self.drop(x)
        rotation = None if self.rotary is None else self.rotary(positions)
        self._routings = []
        for block, attention_mask_args in zip(self.blocks, sights, strict=True):
            x = block(x, rotation=rotation, **attention_mask_args)
            if self.config.n_expert is not None:
                x, routing = x
                self._routings.append(routing)
        return x if self.final_norm is None else self.final_norm(x)

    def _attention_mask_args(self, positions: Tensor) -> list[dict[str, Tensor | bool]]:
        """What each block's queries may look at in a sequence that is read whole, as `Attention` takes it."""
        window = self.config.attention_window
        dense = banded = {"causal": True}  # SDPA knows this mask without having to read one
        if window is not None and window < len(positions):
            banded = {"mask": causal_band(positions, positions, window)}
        return [dense if self.config.window_of(i) is None else banded for i in range(self.config.n_layer)]

    @property
    def head(self) -> LMHead:
        """The head as values: `nn.loss.linear_cross_entropy` never forms all logits."""
        head = self.tok_emb if self.lm_head is None else self.lm_head
        return LMHead(weight=head.weight, softcap=self.config.logit_softcap)

    @property
    def auxiliary(self) -> Auxiliary | None:
        """What the newest `hidden` adds to the objective; None without experts, and where nothing is being trained."""
        if self.config.n_expert is None or not self.training:
            return None
        return auxiliary(
            self._routings, balance_coef=self.config.router_aux_loss_coef, z_coef=self.config.router_z_loss_coef
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the word after each token: tokens (B, T) -> (B, T, V)."""
        return self.head.logits(self.hidden_states(tokens))


def _block(c: DecoderConfig) -> Block:
    attention = Attention(
        c.d_model,
        n_head=c.n_head,
        n_kv_head=c.kv_heads,
        d_head=c.head_width,
        bias=c.bias,
        qkv_bias=c.attention_biased,
        qk_norm_eps=c.norm_eps if c.qk_norm else None,
        dropout=c.dropout_at("attention"),
        scale=c.attention_scale,
    )
    feedforward = FEEDFORWARDS[c.feedforward]
    if c.n_expert is None:
        kind = Block if c.norm_placement is NormPlacement.pre else PostNormBlock
        feedforward = feedforward(c.d_model, c.ff_width, bias=c.bias)
    else:
        kind = ExpertBlock
        feedforward = MoE(
            feedforward,
            c.d_model,
            c.ff_width,
            bias=c.bias,
            n_expert=c.n_expert,
            n_active=c.n_expert_per_token,
            n_shared=c.n_shared_expert or 0,
            softmax=c.router_softmax,
            capacity_factor=c.capacity_factor,
        )
    return kind(norm1=_norm(c), attn=attention, norm2=_norm(c), ffn=feedforward, dropout=c.dropout_at("residual"))


def _norm(c: DecoderConfig) -> nn.Module:
    if c.norm is Norm.rmsnorm:
        return RMSNorm(c.d_model, eps=c.norm_eps)
    return LayerNorm(c.d_model, eps=c.norm_eps, bias=c.bias)
