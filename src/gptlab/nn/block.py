"""Residual blocks: attention, then the position-wise sublayer."""

from torch import Tensor, nn

from gptlab.nn.attention import KV, Attention


class Block(nn.Module):
    """Pre-norm: each sublayer reads the normalized residual stream and adds to it (GPT-2, section 2.3)."""

    def __init__(
        self,
        *,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        ffn: nn.Module,
        dropout: float = 0.0,
        branch_scale: float = 1.0,
    ):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.ffn = norm1, attn, norm2, ffn
        self.drop = nn.Dropout(dropout)
        self.branch_scale = branch_scale  # of what is added; CompleteP, arXiv:2505.01618, equation 1

    def forward(self, x: Tensor, **attention) -> Tensor:
        x = x + self.branch(self.attn(self.norm1(x), **attention))
        return x + self.branch(self.ffn(self.norm2(x)))

    def branch(self, added: Tensor) -> Tensor:
        """What a sublayer adds to the residual stream, of what it returned."""
        added = self.drop(added)
        return added if self.branch_scale == 1.0 else self.branch_scale * added


class CrossBlock(Block):
    """Pre-norm, with cross-attention between the two sublayers (arXiv:1706.03762, section 3.1; T5)."""

    def __init__(self, *, norm_cross: nn.Module, cross: Attention, **parts):
        super().__init__(**parts)
        self.norm_cross, self.cross = norm_cross, cross

    def forward(self, x: Tensor, *, source: Tensor | KV, source_mask: Tensor | None = None, **attention) -> Tensor:
        x = x + self.branch(self.attn(self.norm1(x), **attention))
        x = x + self.branch(self.cross(self.norm_cross(x), source=source, mask=source_mask))
        return x + self.branch(self.ffn(self.norm2(x)))


class PostNormBlock(Block):
    """Post-norm: the residual stream is normalized after each addition (arXiv:1706.03762, section 3.1; GPT-1)."""

    def forward(self, x: Tensor, **attention) -> Tensor:
        x = self.norm1(x + self.drop(self.attn(x, **attention)))
        return self.norm2(x + self.drop(self.ffn(x)))
