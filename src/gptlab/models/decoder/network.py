"""The decoder-only transformer: GPT-1 to GPT-3, Llama, Mixtral and what lies between."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import DecoderConfig, Init, Norm, NormPlacement, Position, RopeType
from gptlab.models.transformer import HEAD, Transformer, standard
from gptlab.nn import rope_scaling
from gptlab.nn.attention import Attention
from gptlab.nn.block import Block, PostNormBlock
from gptlab.nn.cache import KVCache
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import Auxiliary, LMHead
from gptlab.nn.mask import as_scores, causal_band, positions_in_documents, same_document
from gptlab.nn.position import Rotary, Sinusoidal
from gptlab.nn.tied import TiedWeight
from gptlab.nn.token_shift import TokenShift

if TYPE_CHECKING:
    from gptlab.nn.moe import Routing

# The last matrix of each residual branch.
RESIDUAL_PROJECTIONS = ("attn.out.weight", "ffn.down.weight", "ffn.experts.down.weight", "ffn.shared.down.weight")


class Decoder(Transformer):
    """Predicts each token from those before it."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, vocab_size: int):
        super().__init__(config)
        c = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self._tied_weight = TiedWeight()
        self.token_shift = TokenShift(c.d_model) if c.token_shift else None
        self.pos_emb = nn.Embedding(c.context_length, c.d_model) if c.position is Position.learned else None
        self.sinusoidal = Sinusoidal(c.context_length, c.d_model) if c.position is Position.sinusoidal else None
        self.rotary = _rotary(c) if c.position is Position.rotary else None
        self.drop = nn.Dropout(c.dropout_at("embedding"))
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.n_layer))
        self.final_norm = _norm(c) if c.norm_placement is NormPlacement.pre else None
        self._routings: list[Routing] = []  # of the newest forward pass, by block
        self.lm_head = None if c.tie_embeddings else nn.Linear(c.d_model, vocab_size, bias=False)

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        n_tokens = tokens.shape[-1]
        if cache is None:
            self.check_length(n_tokens)
            places = torch.arange(n_tokens, device=tokens.device)
            positions = places if document_ids is None else positions_in_documents(document_ids)
        elif document_ids is not None:
            raise ValueError("document_ids with a cache, whose sequences hold one document each; leave one out")
        else:
            cache.read(n_tokens, tokens.device)
            places = positions = cache.positions
        self._tied_weight.drop()
        adds_in_place = self._head_gives_dense_gradient()
        x = self._tied_weight.look_up(self.tok_emb, tokens) if adds_in_place else self.tok_emb(tokens)  # (B, T, D)
        if self.token_shift is not None:
            x = self.token_shift(x, positions, cache=None if cache is None else cache.layers[-1])
        if self.pos_emb is not None:
            x = x + self.pos_emb(positions)
        elif self.sinusoidal is not None:  # encodings are of size 1, so token embeddings are scaled up to them
            x = x * math.sqrt(self.config.d_model) + self.sinusoidal(positions).to(x.dtype)
        if cache is not None:
            block_args = [cache.attention_mask_args(i, self.config.window_of(i)) for i in range(self.config.n_layer)]
        elif document_ids is not None:
            block_args = self._confined_args(places, document_ids, x)
        else:
            block_args = self._attention_mask_args(places)
        x = self.drop(x)
        rotation = None if self.rotary is None else self.rotary(positions)
        self._routings = []
        if attention_mask is not None:
            _check_padding(attention_mask)
        for block, args in zip(self.blocks, block_args, strict=True):
            if self.config.n_expert is None:  # attention is causal, so that no real token attends to the padding
                x = block(x, rotation=rotation, **args)
            else:
                x, routing = block(x, rotation=rotation, attention_mask=attention_mask, **args)
                self._routings.append(routing)
        return x if self.final_norm is None else self.final_norm(x)

    def _head_gives_dense_gradient(self) -> bool:
        """Whether the lookup's gradient may be sparse, to be added to that of the head.

        A class head's objective may do without the head over the vocabulary, and processes that average gradients want
        dense ones.
        """
        alone = not (dist.is_available() and dist.is_initialized())
        return self.lm_head is None and self.class_head is None and alone and TiedWeight.helps(self.tok_emb.weight)

    def _apply(self, fn, recurse=True):
        self._tied_weight.drop()  # of a weight that moves or is cast
        return super()._apply(fn, recurse)

    def _attention_mask_args(self, places: Tensor) -> list[dict[str, Tensor | bool]]:
        """What each block attends to in a sequence that is read from its start, as arguments of its `Attention`."""
        window = self.config.attention_window
        dense: dict[str, Tensor | bool] = {"causal": True}  # SDPA knows this mask without having to read one
        banded: dict[str, Tensor | bool] = dense
        if window is not None and window < len(places):
            banded = {"mask": causal_band(places, places, window)}
        return [dense if self.config.window_of(i) is None else banded for i in range(self.config.n_layer)]

    def _confined_args(self, places: Tensor, document_ids: Tensor, x: Tensor) -> list[dict[str, Tensor]]:
        """The same where a token attends to its own document alone."""
        within, found = same_document(document_ids)[:, None], {}  # (B, 1, T, T)
        for window in {self.config.window_of(i) for i in range(self.config.n_layer)}:
            band = causal_band(places, places, len(places) if window is None else window)
            found[window] = {"mask": as_scores(within & band, x)}
        return [found[self.config.window_of(i)] for i in range(self.config.n_layer)]

    @property
    def head(self) -> LMHead:
        weight = self.lm_head.weight if self.lm_head is not None else self._tied_weight.take(self.tok_emb.weight)
        return LMHead(weight=weight, scale=self.logit_scale, softcap=self.config.logit_softcap)

    @property
    def auxiliary(self) -> Auxiliary | None:
        if self.config.n_expert is None or not self.training:
            return None
        from gptlab.nn.moe import auxiliary

        return auxiliary(
            self._routings, balance_coef=self.config.router_aux_loss_coef, z_coef=self.config.router_z_loss_coef
        )

    def new_cache(self, batch_size: int, n_positions: int) -> KVCache:
        n_layer = self.config.n_layer + (self.token_shift is not None)  # whose embeddings are kept like keys
        return KVCache(n_layer, batch_size=batch_size, n_positions=n_positions)

    @property
    def output_modules(self) -> Sequence[nn.Module]:
        return [module for module in (self.final_norm, self.lm_head) if module is not None]

    def linear_layers(self, block: nn.Module) -> Mapping[str, nn.Linear]:
        # The router decides in float32 by its weight, and is not called.
        return {name: layer for name, layer in super().linear_layers(block).items() if name != "ffn.router"}

    def as_standard(self) -> tuple[ModelConfig, dict[str, float]]:
        c = self.config
        scale = c.scaled_scores(c.attention_scale)
        own = c.head_width**-0.5 if c.attention_scale is None else c.attention_scale
        scores, changes = 1.0 if scale is None else scale / own, {}
        if c.qk_norm and scores != 1.0:  # of which a factor of the queries would be lost
            scores, changes = 1.0, {"attention_scale": scale}
        if self.lm_head is not None:
            logits = (HEAD,)
        else:
            last = "final_norm" if self.final_norm is not None else f"blocks.{c.n_layer - 1}.norm2"
            logits = tuple(name for name, _ in self.named_parameters() if name.startswith(f"{last}."))
        return standard(c, **changes), self._factors(scores=scores, branches=RESIDUAL_PROJECTIONS, logits=logits)

    def init_parameter(self, name: str, value: Tensor, module: nn.Module, generator: torch.Generator) -> None:
        config, ratio = self.config, self.init_ratio(name, module)
        embedding = isinstance(module, nn.Embedding)
        residual = name.endswith(RESIDUAL_PROJECTIONS)
        if not embedding and not hasattr(module, "in_features"):
            super().init_parameter(name, value, module, generator)
            return
        # Of linear layers, one matrix or a stack of them; in the base model, as `ratio` expects.
        n_inputs = getattr(module, "in_features", 1) / config.width_ratio
        if config.init is Init.torch:
            if embedding:
                value.normal_(generator=generator)
            else:
                bound = n_inputs**-0.5 * ratio  # kaiming_uniform_ with a = sqrt(5), as nn.Linear has it
                value.uniform_(-bound, bound, generator=generator)
        elif name.endswith("bias"):
            value.zero_()
        elif config.init in (Init.gpt2, Init.normal):
            shrinks = residual and config.init is Init.gpt2
            n_layer = config.n_layer / config.depth_ratio
            std = config.init_std / math.sqrt(2 * n_layer) if shrinks else config.init_std
            value.normal_(std=std * ratio, generator=generator)
        # Init.zero: each block starts as the identity and an untied head as the uniform distribution. Embeddings are of
        # unit size, unless they are the head as well, whose logits would then be too large. Other matrices have the
        # variance that nn.Linear gives them.
        elif residual or name == "lm_head.weight":
            value.zero_()
        elif embedding:
            unit = 1.0 if config.position is not Position.sinusoidal else config.d_model**-0.5
            value.normal_(std=config.init_std if config.tie_embeddings else unit, generator=generator)
        else:
            value.normal_(std=(3 * n_inputs) ** -0.5 * ratio, generator=generator)


def _rotary(c: DecoderConfig) -> Rotary:
    own = c.rotation
    given: dict[str, Any] = {"factor": own.rope_factor, "original_context": own.rope_original_context}
    given |= {"beta_fast": own.rope_beta_fast, "beta_slow": own.rope_beta_slow}
    scaled = {
        RopeType.linear: partial(rope_scaling.linear, factor=given["factor"]),
        RopeType.yarn: partial(rope_scaling.yarn, theta=own.rope_theta, **given),
        RopeType.llama3: partial(rope_scaling.llama3, **given),
    }.get(own.rope_type)
    amplitude = own.rope_attention_factor or 1.0
    return Rotary(c.head_width, c.context_length, theta=own.rope_theta, scaled=scaled, amplitude=amplitude)


def _check_padding(attention_mask: Tensor) -> None:
    if attention_mask.device.type == "cpu" and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("attention_mask is False before a real token; pad sequences at their end")


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
        scale=c.scaled_scores(c.attention_scale),
    )
    feedforward = FEEDFORWARDS[c.feedforward]
    if c.n_expert is None:
        kind = Block if c.norm_placement is NormPlacement.pre else PostNormBlock
        feedforward = feedforward(c.d_model, c.ff_width, bias=c.bias)
    else:
        from gptlab.nn.moe import ExpertBlock, MoE  # which imports torch's compiler, for seconds

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
    return kind(
        norm1=_norm(c),
        attn=attention,
        norm2=_norm(c),
        ffn=feedforward,
        dropout=c.dropout_at("residual"),
        branch_scale=1 / c.depth_ratio,
    )


def _norm(c: DecoderConfig) -> nn.Module:
    if c.norm is Norm.rmsnorm:
        return nn.RMSNorm(c.d_model, eps=c.norm_eps)
    return nn.LayerNorm(c.d_model, eps=c.norm_eps, bias=c.bias)
