"""The encoder: BERT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.nn.attention import Attention
from gptlab.nn.block import PostNormBlock
from gptlab.nn.feedforward import FEEDFORWARDS
from gptlab.nn.loss import LMHead
from gptlab.nn.norm import LayerNorm


class Encoder(nn.Module):
    """Describes each token by all tokens of its text (arXiv:1810.04805, section 3)."""

    def __init__(self, config: EncoderConfig, vocab_size: int):
        super().__init__()
        c = self.config = config
        self.tok_emb = nn.Embedding(vocab_size, c.d_model)
        self.pos_emb = nn.Embedding(c.context_length, c.d_model)
        self.seg_emb = nn.Embedding(c.n_segment, c.d_model)
        self.emb_norm = _norm(c)
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(_block(c) for _ in range(c.n_layer))
        self.pooler = None if c.heads is Heads.masked_lm else nn.Linear(c.d_model, c.d_model)
        self.mlm = None if c.heads is Heads.none else MaskedLMHead(c, vocab_size)
        self.nsp = nn.Linear(c.d_model, 2) if c.heads is Heads.pretraining else None

    def hidden_states(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the heads read: tokens (B, T) -> (B, T, D).

        segments (B, T) says which text each token belongs to (None: all to the first), mask (B, T) is True where there
        is a token and False where a row is filled up (None: all are tokens).
        """
        n_tokens = tokens.shape[-1]
        if n_tokens > self.config.context_length:
            raise UserError(
                f"{n_tokens} tokens do not fit model.context_length={self.config.context_length}; "
                f"crop the input or set model.context_length={n_tokens}"
            )
        segments = torch.zeros_like(tokens) if segments is None else segments
        positions = torch.arange(n_tokens, device=tokens.device)
        x = self.tok_emb(tokens) + self.seg_emb(segments) + self.pos_emb(positions)  # (B, T, D)
        x = self.drop(self.emb_norm(x))
        mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, mask=mask)
        return x

    def transformed(self, hidden: Tensor) -> Tensor:
        """What `output` reads: the masked positions' hidden (..., D) -> (..., D)."""
        return self._head("mlm")(hidden)

    @property
    def head(self) -> LMHead:
        """The masked-word head as values, for what `transformed` returns."""
        return LMHead(weight=self.tok_emb.weight, bias=self._head("mlm").bias)

    def pooled(self, hidden: Tensor) -> Tensor:
        """A text's description, from its first token: hidden (B, T, D) -> (B, D)."""
        return torch.tanh(self._head("pooler")(hidden[:, 0]))

    def next_sentence(self, pooled: Tensor) -> Tensor:
        """Scores of 0, the second segment follows the first, and 1, it does not: pooled (B, D) -> (B, 2)."""
        return self._head("nsp")(pooled)

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Scores of the word at each position: tokens (B, T) -> (B, T, V)."""
        return self.head.logits(self.transformed(self.hidden_states(tokens, segments=segments, mask=mask)))

    def _head(self, name: str) -> nn.Module:
        head = getattr(self, name)
        if head is None:
            what = {"mlm": "masked-word head", "pooler": "pooler", "nsp": "next-sentence head"}[name]
            raise UserError(f"model.heads={self.config.heads.value} has no {what}; set model.heads=pretraining")
        return head


class MaskedLMHead(nn.Module):
    """What comes between the last block and the table of words; its bias is added to the words' scores."""

    def __init__(self, c: EncoderConfig, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(c.d_model, c.d_model)
        self.norm = _norm(c)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


def _block(c: EncoderConfig) -> PostNormBlock:
    attention = Attention(
        c.d_model,
        n_head=c.n_head,
        n_kv_head=c.n_head,
        d_head=c.head_width,
        bias=True,
        qkv_bias=True,
        dropout=c.dropout_at("attention"),
    )
    feedforward = FEEDFORWARDS[c.feedforward](c.d_model, c.ff_width, bias=True)
    return PostNormBlock(norm1=_norm(c), attn=attention, norm2=_norm(c), ffn=feedforward, dropout=c.dropout)


def _norm(c: EncoderConfig) -> LayerNorm:
    return LayerNorm(c.d_model, eps=c.norm_eps, bias=True)
