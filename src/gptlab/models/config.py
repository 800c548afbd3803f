"""What a run may say about its model."""

from dataclasses import dataclass
from enum import Enum


class Position(Enum):
    """How a token knows where it stands."""

    learned = "learned"
    rotary = "rotary"
    none = "none"


class Norm(Enum):
    """The normalisation before each sublayer and after the last block."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class Feedforward(Enum):
    """The position-wise sublayer."""

    gelu = "gelu"  # tanh form, as in GPT-2
    swiglu = "swiglu"
    relu2 = "relu2"


class Init(Enum):
    """Where the weights start."""

    gpt2 = "gpt2"  # normal, residual projections scaled by 1/sqrt(2 n_layer)
    torch = "torch"  # each layer's own default in PyTorch
    zero = "zero"  # normal, residual projections and an untied head at zero


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every architecture has."""

    architecture: str = "decoder"
    vocab_size: int | None = None  # null: the tokenizer's
    context_length: int = 256


@dataclass(kw_only=True, slots=True)
class DecoderConfig(ModelConfig):
    """A decoder-only transformer; the defaults are GPT-2's."""

    architecture: str = "decoder"
    n_layer: int = 6
    n_head: int = 6
    n_kv_head: int | None = None  # null: n_head; fewer is grouped-query attention
    d_model: int = 384
    d_head: int | None = None  # null: d_model / n_head
    d_ff: int | None = None  # null: 4 d_model (swiglu: 8/3 d_model, up to a multiple of 64)
    position: Position = Position.learned
    rope_theta: float = 10_000.0
    norm: Norm = Norm.layernorm
    norm_eps: float = 1e-5
    feedforward: Feedforward = Feedforward.gelu
    bias: bool = True  # of every linear layer but the head, and of LayerNorm
    qkv_bias: bool | None = None  # null: bias
    qk_norm: bool = False
    tied_head: bool = True
    logit_softcap: float | None = None
    dropout: float = 0.0
    dropout_embedding: float | None = None  # null: dropout, likewise below
    dropout_attention: float | None = None
    dropout_residual: float | None = None
    init: Init = Init.gpt2
    init_std: float = 0.02

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_head if self.d_head is None else self.d_head

    @property
    def ff_width(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        if self.feedforward is Feedforward.swiglu:
            return -(-8 * self.d_model // (3 * 64)) * 64
        return 4 * self.d_model

    def dropout_at(self, place: str) -> float:
        """The rate at "embedding", "attention" or "residual"."""
        rate = getattr(self, f"dropout_{place}")
        return self.dropout if rate is None else rate

    def check(self) -> None:
        for name in ("context_length", "n_layer", "n_head", "d_model", "vocab_size", "n_kv_head", "d_head", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name}={value} must be at least 1")
        if self.d_head is None and self.d_model % self.n_head:
            raise ValueError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}; "
                f"use a multiple of {self.n_head} or set model.d_head"
            )
        if self.n_head % self.kv_heads:
            divisors = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}; use one of {divisors}"
            )
        if self.position is Position.rotary and self.head_width % 2:
            raise ValueError(
                f"model.position=rotary turns pairs of channels, and the head width is {self.head_width}; "
                "set an even model.d_head"
            )
        for name in ("dropout", "dropout_embedding", "dropout_attention", "dropout_residual"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"model.{name}={value} is outside [0, 1)")
        for name in ("norm_eps", "rope_theta", "init_std", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"model.{name}={value} must be above 0")


ARCHITECTURES = {"decoder": DecoderConfig}
