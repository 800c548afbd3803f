"""The encoder-decoder: T5 and T5 1.1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.attention import KV, Attention
from gptlab.nn.block import Block, CrossBlock
from gptlab.nn.cache import KVCache
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import LMHead
from gptlab.nn.mask import causal_band
from gptlab.nn.norm import RMSNorm
from gptlab.nn.position import RelativeBias


@dataclass(frozen=True, slots=True)
class CrossAttentionCache:
    """What a decoder looks at of the texts that were encoded, ready for each of its blocks."""

    layers: list[KV]  # (B, H, S, K) each
    mask: Tensor | None  # (B, 1, 1, S), True where there is a token
    texts: list[int]  # the text that each row holds

    def select(self, rows: Sequence[int]) -> "CrossAttentionCache":
        """These rows of it; nothing is copied where they hold the same texts as before."""
        texts = [self.texts[row] for row in rows]
        if texts == self.texts:
            return self
        chosen = torch.tensor(rows, device=self.layers[0][0].device)
        layers = [(keys[chosen], values[chosen]) for keys, values in self.layers]
        return CrossAttentionCache(layers, None if self.mask is None else self.mask[chosen], texts)


class EncoderDecoder(nn.Module):
    """Predicts each token of a text from those before it and from all of another text (arXiv:1910.10683, section 2.1).

    Attention scores are not divided by sqrt(d_head): the initial values of the queries are, once.
    """

    def __init__(self, config: EncoderDecoderConfig, vocab_size: int):
        super().__init__()
        c = self.config = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self.encoder = Stack(c, [_block(c) for _ in range(c.n_layer)], bidirectional=True)
        self.decoder = Stack(c, [_cross_block(c) for _ in range(c.decoder_layers)], bidirectional=False)
        self.lm_head = None if c.tie_embeddings else nn.Linear(c.d_model, vocab_size, bias=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order in which they run."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        source: Tensor | CrossAttentionCache,
        source_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: the decoder's tokens (B, T) -> (B, T, D); with a cache they go on from what it holds.

        source is the encoder's tokens (B, S), of which source_mask (B, S) is False where a row is filled up (None: all
        are tokens), or what `encode` made of them.
        """
        if isinstance(source, CrossAttentionCache):
            layers, mask = source.layers, source.mask
        else:
            # The states are keys and values only within each block: sharded training gathers its weights there.
            layers, mask = [self._states(source, source_mask)] * len(self.decoder.blocks), _over_keys(source_mask)
        return self.decoder(
            self.tok_emb(tokens), cache=cache, sources=[{"source": layer, "source_mask": mask} for layer in layers]
        )

    def encode(self, source: Tensor, mask: Tensor | None = None) -> CrossAttentionCache:
        """Read the encoder's tokens (B, S) once, for any number of calls of `hidden`."""
        states = self._states(source, mask)
        layers = [block.cross.keys_values(states) for block in self.decoder.blocks]
        return CrossAttentionCache(layers, _over_keys(mask), list(range(len(source))))

    def _states(self, source: Tensor, mask: Tensor | None) -> Tensor:
        return self.encoder(self.tok_emb(source), mask=_over_keys(mask))  # (B, S, D)

    @property
    def head(self) -> LMHead:
        """The head as values: `nn.loss.linear_cross_entropy` never forms all logits."""
        head = self.tok_emb if self.lm_head is None else self.lm_head
        return LMHead(
            weight=head.weight, scale=self.config.d_model**-0.5 if self.config.scales_decoder_outputs else 1.0
        )

    def forward(
        self, tokens: Tensor, *, source: Tensor | CrossAttentionCache, source_mask: Tensor | None = None
    ) -> Tensor:
        """Scores of the word after each of the decoder's tokens: tokens (B, T) -> (B, T, V)."""
        return self.head.logits(self.hidden_states(tokens, source=source, source_mask=source_mask))


class Stack(nn.Module):
    """Blocks that share one bias for relative positions, with a norm at their end."""

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
        self.final_norm = RMSNorm(c.d_model, eps=c.norm_eps)
        self.bidirectional = bidirectional

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        sources: list[dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """Run all blocks: x (B, T, D) -> (B, T, D); `sources` are what each looks at beside."""
        if cache is None:
            positions = keys = torch.arange(x.shape[1], device=x.device)
        else:
            cache.read(x.shape[1], x.device)
            positions, keys = cache.positions, torch.arange(cache.end, device=x.device)
        bias = self.position(positions, keys)  # (H, T, S), or (B, H, T, S) where rows differ
        if not self.bidirectional:
            mask = causal_band(positions, keys, len(keys)).unsqueeze(-3)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            beside = {} if sources is None else sources[i]
            x = block(x, mask=bias, cache=None if cache is None else cache.layers[i], **beside)
        return self.drop(self.final_norm(x))


def _over_keys(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens (B, S) as attention takes it, (B, 1, 1, S)."""
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
        scale=1.0,
    )


def _parts(c: EncoderDecoderConfig) -> dict[str, nn.Module]:
    return {
        "norm1": _norm(c),
        "attn": _attention(c),
        "norm2": _norm(c),
        "ffn": FEEDFORWARDS[c.feedforward](c.d_model, c.ff_width, bias=False, dropout=c.dropout),
    }


def _block(c: EncoderDecoderConfig) -> Block:
    return Block(**_parts(c), dropout=c.dropout)


def _cross_block(c: EncoderDecoderConfig) -> CrossBlock:
    return CrossBlock(**_parts(c), norm_cross=_norm(c), cross=_attention(c), dropout=c.dropout)


def _norm(c: EncoderDecoderConfig) -> RMSNorm:
    return RMSNorm(c.d_model, eps=c.norm_eps)
