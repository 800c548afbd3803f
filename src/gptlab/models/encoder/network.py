"""The encoder: BERT."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.config import ModelConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.transformer import Transformer, standard
from gptlab.nn.attention import Attention
from gptlab.nn.block import PostNormBlock
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import LMHead


class Encoder(Transformer):
    """Encodes each token by all tokens of its sequence (BERT, arXiv:1810.04805, section 3)."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, vocab_size: int):
        super().__init__(config)
        c = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self.pos_emb = nn.Embedding(c.context_length, c.d_model)
        self.seg_emb = nn.Embedding(c.n_segment, c.d_model)
        self.emb_norm = _norm(c)
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.n_layer))
        self.pooler = None if c.heads is Heads.masked_lm else nn.Linear(c.d_model, c.d_model)
        self.mlm = None if c.heads is Heads.none else MaskedLMHead(c, vocab_size)
        self.nsp = nn.Linear(c.d_model, 2) if c.heads is Heads.pretraining else None

    def hidden_states(
        self, tokens: Tensor, *, segments: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What the heads read: tokens (B, T) -> (B, T, D).

        segments (B, T) is the segment of each token (None: all are of segment 0); attention_mask (B, T) is True on real
        tokens (None: no padding).
        """
        n_tokens = tokens.shape[-1]
        self.check_length(n_tokens)
        segments = torch.zeros_like(tokens) if segments is None else segments
        positions = torch.arange(n_tokens, device=tokens.device)
        x = self.tok_emb(tokens) + self.seg_emb(segments) + self.pos_emb(positions)  # (B, T, D)
        x = self.drop(self.emb_norm(x))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, mask=mask)
        return x

    def mlm_transform(self, hidden_states: Tensor) -> Tensor:
        return self._head("mlm")(hidden_states)

    @property
    def head(self) -> LMHead:
        """The masked-language-model head as values, for what `mlm_transform` returns."""
        return LMHead(weight=self.tok_emb.weight, bias=self._head("mlm").bias, scale=self.logit_scale)

    def pooled(self, hidden_states: Tensor) -> Tensor:
        """One state for each sequence, from its first token: (B, T, D) -> (B, D)."""
        return torch.tanh(self._head("pooler")(hidden_states[:, 0]))

    def next_sentence(self, pooled: Tensor) -> Tensor:
        return self._head("nsp")(pooled)

    def forward(self, tokens: Tensor, **inputs) -> Tensor:
        """Logits at each position: tokens (B, T) and what `hidden_states` takes beside -> (B, T, V)."""
        return self.head.logits(self.mlm_transform(self.hidden_states(tokens, **inputs)))

    @property
    def output_modules(self) -> Sequence[nn.Module]:
        return [module for module in (self.pooler, self.mlm, self.nsp) if module is not None]

    def init_parameter(self, name: str, value: Tensor, module: nn.Module, generator: torch.Generator) -> None:
        if name.endswith("bias") or not isinstance(module, nn.Linear | nn.Embedding):
            super().init_parameter(name, value, module, generator)
        else:
            value.normal_(std=self.config.init_std * self.init_ratio(name, module), generator=generator)

    def as_standard(self) -> tuple[ModelConfig, dict[str, float]]:
        c = self.config
        scale = c.scaled_scores(None)
        scores = 1.0 if scale is None else scale * c.head_width**0.5
        logits = () if self.mlm is None else ("mlm.norm.weight", "mlm.norm.bias")
        return standard(c), self._factors(scores=scores, branches=(), logits=logits)

    def _head(self, name: str) -> Any:
        head = getattr(self, name)
        if head is None:
            what = {"mlm": "masked-language-model head", "pooler": "pooler", "nsp": "next-sentence head"}[name]
            raise UserError(f"model.heads={self.config.heads.value} has no {what}; set model.heads=pretraining")
        return head


class MaskedLMHead(nn.Module):
    """The transform between the last block and the token embedding; `bias` is added to the logits."""

    def __init__(self, c: EncoderConfig, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(c.d_model, c.d_model)
        self.norm = _norm(c)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden_states)))


def _block(c: EncoderConfig) -> PostNormBlock:
    attention = Attention(
        c.d_model,
        n_head=c.n_head,
        n_kv_head=c.n_head,
        d_head=c.head_width,
        bias=True,
        qkv_bias=True,
        dropout=c.dropout_at("attention"),
        scale=c.scaled_scores(None),
    )
    feedforward = FEEDFORWARDS[c.feedforward](c.d_model, c.ff_width, bias=True)
    return PostNormBlock(norm1=_norm(c), attn=attention, norm2=_norm(c), ffn=feedforward, dropout=c.dropout)


def _norm(c: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(c.d_model, eps=c.norm_eps, bias=True)
