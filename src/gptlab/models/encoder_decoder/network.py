"""The encoder-decoder: T5 and T5 1.1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptlab.models.base import LanguageModel
from gptlab.models.config import ModelConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.models.transformer import HEAD, Transformer, standard
from gptlab.nn.attention import KV, Attention
from gptlab.nn.block import Block, CrossBlock
from gptlab.nn.cache import KVCache
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import LMHead
from gptlab.nn.mask import causal_band
from gptlab.nn.position import RelativeBias
from gptlab.nn.tensor_parallel import TensorParallelPlan


@dataclass(frozen=True, slots=True)
class CrossAttentionCache:
    """Keys and values of encoded source texts, for the cross-attention of each decoder block."""

    layers: list[KV]  # (B, H, S, K) each
    mask: Tensor | None  # (B, 1, 1, S), True on real tokens
    texts: list[int]  # the source text of each sequence

    def select(self, indices: Sequence[int]) -> "CrossAttentionCache":
        """These sequences of the batch; nothing is copied where they have the same source texts as before."""
        texts = [self.texts[i] for i in indices]
        if texts == self.texts:
            return self
        chosen = torch.tensor(indices, device=self.layers[0][0].device)
        layers = [(keys[chosen], values[chosen]) for keys, values in self.layers]
        return CrossAttentionCache(layers, None if self.mask is None else self.mask[chosen], texts)


class EncoderDecoder(Transformer):
    """Predicts each token of a target from those before it and from a whole source (T5, arXiv:1910.10683, section 2.1).

    Attention scores are not divided by sqrt(d_head); instead the initial values of the queries are.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, vocab_size: int):
        super().__init__(config)
        c = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self.encoder = Stack(c, [_block(c) for _ in range(c.n_layer)], bidirectional=True)
        self.decoder = Stack(c, [_cross_block(c) for _ in range(c.decoder_layers)], bidirectional=False)
        self.lm_head = None if c.tie_embeddings else nn.Linear(c.d_model, vocab_size, bias=False)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.encoder.blocks, *self.decoder.blocks]

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        source: Tensor | CrossAttentionCache,
        source_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: the decoder's tokens (B, T) -> (B, T, D).

        source is the encoder's tokens (B, S), of which source_mask (B, S) is True on real tokens (None: no padding), or
        what `encode` made of them. Padding of the decoder's tokens, at their end, is attended to by padding alone.
        """
        if isinstance(source, CrossAttentionCache):
            layers, mask = source.layers, source.mask
        else:
            # Keys and values are computed within each block: sharded training gathers its weights there.
            layers, mask = [self._states(source, source_mask)] * len(self.decoder.blocks), _mask_keys(source_mask)
        return self.decoder(
            self.tok_emb(tokens), cache=cache, sources=[{"source": layer, "source_mask": mask} for layer in layers]
        )

    def encode(self, source: Tensor, mask: Tensor | None = None) -> CrossAttentionCache:
        """Run the encoder on tokens (B, S) once, for any number of calls of `hidden_states`."""
        states = self._states(source, mask)
        layers = [cast(CrossBlock, block).cross.keys_values(states) for block in self.decoder.blocks]
        return CrossAttentionCache(layers, _mask_keys(mask), list(range(len(source))))

    def _states(self, source: Tensor, mask: Tensor | None) -> Tensor:
        return self.encoder(self.tok_emb(source), mask=_mask_keys(mask))  # (B, S, D)

    @property
    def head(self) -> LMHead:
        head = self.tok_emb if self.lm_head is None else self.lm_head
        c = self.config
        own = (c.d_model / c.width_ratio) ** -0.5 if c.scales_decoder_outputs else 1.0
        return LMHead(weight=head.weight, scale=own * self.logit_scale)

    def as_standard(self) -> tuple[ModelConfig, dict[str, float]]:
        c = self.config
        # Where outputs are scaled by d_model^-0.5, the standard model does so by its own width.
        own = c.width_ratio**0.5 if c.scales_decoder_outputs else 1.0
        factors = self._factors(scores=c.scaled_scores(1.0) or 1.0, branches=(), logits=())
        last = "decoder.final_norm.weight" if self.lm_head is None else HEAD
        return standard(c), factors | {last: own * self.logit_scale}

    def new_cache(self, batch_size: int, n_positions: int) -> KVCache:
        return KVCache(self.config.decoder_layers, batch_size=batch_size, n_positions=n_positions)

    @property
    def output_blocks(self) -> Sequence[nn.Module]:
        return list(self.decoder.blocks)

    @property
    def output_modules(self) -> Sequence[nn.Module]:
        return [module for module in (self.decoder.final_norm, self.lm_head) if module is not None]

    def tensor_parallel_plan(self, block: nn.Module) -> TensorParallelPlan:
        return LanguageModel.tensor_parallel_plan(self, block)  # all heads share the biases of relative positions

    def init_parameter(self, name: str, value: Tensor, module: nn.Module, generator: torch.Generator) -> None:
        """T5's own (mesh-tensorflow, as in transformers): the token embedding and an untied head of unit size, matrices
        that keep the variance, and queries that compensate for scores without a scale."""
        c, ratio = self.config, self.init_ratio(name, module)
        if name in ("tok_emb.weight", "lm_head.weight"):
            std = 1.0
        elif isinstance(module, nn.Embedding):  # biases of relative positions
            std = (c.d_model / c.width_ratio) ** -0.5
        elif isinstance(module, nn.Linear):
            queries = name.endswith((".attn.q.weight", ".cross.q.weight"))
            # Of the base model, as `ratio` expects.
            width = c.head_width if c.base_d_head is None else c.base_d_head
            std = (module.in_features / c.width_ratio * (width if queries else 1)) ** -0.5
        else:
            value.fill_(c.init_factor)  # a norm's weight
            return
        value.normal_(std=c.init_factor * std * ratio, generator=generator)


class Stack(nn.Module):
    """Blocks that share one relative position bias, with a norm at their end."""

    def __init__(self, c: EncoderDecoderConfig, blocks: list[Block], *, bidirectional: bool):
        super().__init__()
        self.position = RelativeBias(
            c.relative_attention_num_buckets,
            c.n_head,
            max_distance=c.relative_attention_max_distance,
            bidirectional=bidirectional,
        )
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.RMSNorm(c.d_model, eps=c.norm_eps)
        self.bidirectional = bidirectional

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        sources: list[dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """Run all blocks: x (B, T, D) -> (B, T, D); `sources` are each block's arguments for cross-attention."""
        if cache is None:
            positions = keys = torch.arange(x.shape[1], device=x.device)
        else:
            cache.read(x.shape[1], x.device)
            positions, keys = cache.positions, torch.arange(cache.end, device=x.device)
        bias = self.position(positions, keys)  # (H, T, S), or (B, H, T, S) where sequences differ
        if not self.bidirectional:
            mask = causal_band(positions, keys, len(keys)).unsqueeze(-3)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            cross = {} if sources is None else sources[i]
            x = block(x, mask=bias, cache=None if cache is None else cache.layers[i], **cross)
        return self.drop(self.final_norm(x))


def _mask_keys(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens (B, S) as attention takes it: (B, 1, 1, S)."""
    return None if mask is None else mask[:, None, None, :]


def _attention(c: EncoderDecoderConfig) -> Attention:
    return Attention(
        c.d_model,
        n_head=c.n_head,
        n_kv_head=c.n_head,
        d_head=c.head_width,
        bias=False,
        qkv_bias=False,
        dropout=c.dropout,
        scale=c.scaled_scores(1.0),
    )


def _sublayers(c: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "norm1": _norm(c),
        "attn": _attention(c),
        "norm2": _norm(c),
        "ffn": FEEDFORWARDS[c.feedforward](c.d_model, c.ff_width, bias=False, dropout=c.dropout),
    }


def _block(c: EncoderDecoderConfig) -> Block:
    return Block(**_sublayers(c), dropout=c.dropout)


def _cross_block(c: EncoderDecoderConfig) -> CrossBlock:
    return CrossBlock(**_sublayers(c), norm_cross=_norm(c), cross=_attention(c), dropout=c.dropout)


def _norm(c: EncoderDecoderConfig) -> nn.RMSNorm:
    return nn.RMSNorm(c.d_model, eps=c.norm_eps)
