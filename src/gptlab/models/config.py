"""What a run may say about its model."""

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, get_type_hints


class Position(Enum):
    """How a token knows where it stands."""

    learned = "learned"
    rotary = "rotary"
    none = "none"


class Norm(Enum):
    """The normalisation of each sublayer."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class NormPlacement(Enum):
    """Where a sublayer is normalised."""

    pre = "pre"  # its input, and once more after the last block (GPT-2)
    post = "post"  # the stream after it was added, and nothing after the last block (GPT-1)


class AttentionPattern(Enum):
    """How far back each block looks."""

    dense = "dense"
    alternating = "alternating"  # every second block, from the second on, sees `attention_window` tokens (GPT-3)
    banded = "banded"  # every block does (Mistral's sliding window)


class Feedforward(Enum):
    """The position-wise sublayer."""

    gelu = "gelu"  # tanh form, as in GPT-2
    gelu_exact = "gelu_exact"  # as in BERT
    geglu = "geglu"  # gated by the tanh form, as in T5 1.1
    swiglu = "swiglu"
    relu = "relu"
    relu2 = "relu2"

    @property
    def gated(self) -> bool:
        return self in (Feedforward.geglu, Feedforward.swiglu)


class Heads(Enum):
    """What an encoder has beside its blocks."""

    none = "none"  # the pooler alone
    masked_lm = "masked_lm"  # a word for each position, and no pooler
    pretraining = "pretraining"  # both, and whether the second segment follows the first


class RouterSoftmax(Enum):
    """What a token's experts are weighted by."""

    before = "before"  # their probabilities among all (Switch)
    after = "after"  # their probabilities among those chosen (Mixtral)


class Init(Enum):
    """Where the weights start."""

    gpt2 = "gpt2"  # normal, residual projections scaled by 1/sqrt(2 n_layer)
    normal = "normal"  # normal, all alike (GPT-1)
    torch = "torch"  # each layer's own default in PyTorch
    zero = "zero"  # normal, residual projections and an untied head at zero


# What says nothing about a model without experts.
EXPERT_OPTIONS = (
    *("n_expert_active", "n_shared_expert", "router_softmax", "capacity_factor", "balance_loss", "z_loss"),
)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every architecture has."""

    architecture: str = "decoder"
    vocab_size: int | None = None  # null: the tokenizer's
    context_length: int = 256
    init_from: str | None = None  # weights to start from: a run folder, a .ckpt, a transformers folder or a hub name
    n_layer: int = 6
    n_head: int = 6
    d_model: int = 384
    d_head: int | None = None  # null: d_model / n_head
    d_ff: int | None = None  # null: 4 d_model (swiglu, geglu: 8/3 d_model, up to a multiple of 64)
    feedforward: Feedforward = Feedforward.gelu
    dropout: float = 0.0

    @property
    def n_expert(self) -> int | None:
        """How many feedforwards each block has to choose from; None where it has one."""
        return None

    @property
    def kv_heads(self) -> int:
        return self.n_head

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_head if self.d_head is None else self.d_head

    @property
    def ff_width(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        if self.feedforward.gated:
            return -(-8 * self.d_model // (3 * 64)) * 64
        return 4 * self.d_model

    @property
    def last_blocks(self) -> int:
        """How many blocks lie between the words that are read and the head."""
        return self.n_layer

    def linear_layers(self) -> dict[str, tuple[int, int, int]]:
        """The linear layers of the blocks by name: their inputs, their outputs, and how many blocks have one."""
        heads, keys = self.n_head * self.head_width, self.kv_heads * self.head_width
        sizes = {"attn.q": (self.d_model, heads), "attn.k": (self.d_model, keys), "attn.v": (self.d_model, keys)}
        sizes |= {"attn.out": (heads, self.d_model)} | self._feedforward_layers("ffn", self.ff_width)
        return {name: (*size, self.n_layer) for name, size in sizes.items()}

    def _feedforward_layers(self, name: str, width: int) -> dict[str, tuple[int, int]]:
        into = ("gate", "up") if self.feedforward.gated else ("up",)
        layers = {f"{name}.{part}": (self.d_model, width) for part in into}
        return layers | {f"{name}.down": (width, self.d_model)}

    @property
    def auxiliary_terms(self) -> tuple[str, ...]:
        """What the model adds to its objective's terms in training, by name."""
        return ()

    def check(self) -> None:
        """Refuse what no model can have; each architecture adds to it."""
        if self.init_from == "":
            raise ValueError(
                "model.init_from= is empty; name a run folder, a .ckpt file or a transformers folder, or leave it out"
            )
        self.at_least(1, "context_length", "n_layer", "n_head", "d_model", "vocab_size", "d_head", "d_ff")
        if self.d_head is None and self.d_model % self.n_head:
            raise ValueError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}; "
                f"use a multiple of {self.n_head} or set model.d_head"
            )
        for name in (name for name in self.__dataclass_fields__ if name.startswith("dropout")):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"model.{name}={value} is outside [0, 1)")

    def at_least(self, least: int, *names: str) -> None:
        """Refuse a smaller value of one of these options; null is none."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"model.{name}={value} must be at least {least}")

    def above_zero(self, *names: str) -> None:
        """Refuse a value of one of these options that is not above 0; null is none."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"model.{name}={value} must be above 0")


@dataclass(kw_only=True, slots=True)
class DecoderConfig(ModelConfig):
    """A decoder-only transformer; the defaults are GPT-2's."""

    architecture: str = "decoder"
    n_kv_head: int | None = None  # null: n_head; fewer is grouped-query attention
    position: Position = Position.learned
    rope_theta: float = 10_000.0
    norm: Norm = Norm.layernorm
    norm_eps: float = 1e-5
    norm_placement: NormPlacement = NormPlacement.pre
    attention_pattern: AttentionPattern = AttentionPattern.dense
    attention_window: int | None = None  # tokens that a banded block sees, its own included
    n_expert: int | None = None  # feedforwards in each block, each d_ff wide; null: one, seen by every token
    n_expert_active: int = 2  # how many of them a token sees
    n_shared_expert: int | None = None  # beside them, seen by every token
    router_softmax: RouterSoftmax = RouterSoftmax.after
    capacity_factor: float | None = None  # room of an expert in training, in equal shares; null: for all that choose it
    balance_loss: float | None = 0.01  # weight of the load-balancing loss; null: without
    z_loss: float | None = 0.001  # weight of the router's z-loss; null: without
    bias: bool = True  # of every linear layer but the head and the router, and of LayerNorm
    qkv_bias: bool | None = None  # null: bias
    qk_norm: bool = False
    attention_scale: float | None = None  # of the products of queries and keys; null: d_head^-0.5; 1.0: unscaled
    tied_head: bool = True
    logit_softcap: float | None = None
    dropout_embedding: float | None = None  # null: dropout, likewise below
    dropout_attention: float | None = None
    dropout_residual: float | None = None
    init: Init = Init.gpt2
    init_std: float = 0.02

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def attention_biased(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def auxiliary_terms(self) -> tuple[str, ...]:
        return () if self.n_expert is None else ("balance_loss", "z_loss", "drop_rate", "busiest_expert")

    def linear_layers(self) -> dict[str, tuple[int, int, int]]:
        layers = ModelConfig.linear_layers(self)
        if self.n_expert is None:
            return layers
        layers = {name: size for name, size in layers.items() if not name.startswith("ffn.")}  # stacks, by expert
        shared = self._feedforward_layers("ffn.shared", (self.n_shared_expert or 0) * self.ff_width)
        return layers | {name: (*size, self.n_layer) for name, size in shared.items() if self.n_shared_expert}

    def window_of(self, block: int) -> int | None:
        """How many tokens that block sees, its own included; None where it sees all before."""
        banded = self.attention_pattern is AttentionPattern.banded or (
            self.attention_pattern is AttentionPattern.alternating and block % 2 == 1
        )
        return self.attention_window if banded else None

    def dropout_at(self, place: str) -> float:
        """The rate at "embedding", "attention" or "residual"."""
        rate = getattr(self, f"dropout_{place}")
        return self.dropout if rate is None else rate

    def check(self) -> None:
        ModelConfig.check(self)
        self.at_least(1, "n_kv_head", "attention_window", "n_expert", "n_expert_active", "n_shared_expert")
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
        pattern, window = self.attention_pattern, self.attention_window
        if pattern is not AttentionPattern.dense and window is None:
            raise ValueError(
                f"model.attention_pattern={pattern.value} needs a width; set model.attention_window, such as 256"
            )
        if pattern is AttentionPattern.dense and window is not None:
            raise ValueError(
                f"model.attention_window={window} has no effect on model.attention_pattern=dense; "
                "set model.attention_pattern to alternating or banded, or model.attention_window=null"
            )
        self._check_experts()
        self.above_zero("norm_eps", "rope_theta", "attention_scale", "init_std", "logit_softcap")
        self.above_zero("capacity_factor", "balance_loss", "z_loss")

    def _check_experts(self) -> None:
        if self.n_expert is None:
            for option in fields(self):
                value = getattr(self, option.name)
                if option.name in EXPERT_OPTIONS and value != option.default:
                    shown = value.value if isinstance(value, Enum) else "null" if value is None else value
                    raise ValueError(
                        f"model.{option.name}={shown} is about experts, and this model has none; "
                        "set model.n_expert, such as 8"
                    )
            return
        if self.n_expert_active > self.n_expert:
            raise ValueError(
                f"model.n_expert_active={self.n_expert_active} is more than model.n_expert={self.n_expert}; "
                f"use 1 to {self.n_expert}"
            )
        if self.n_expert_active == 1 < self.n_expert and self.router_softmax is RouterSoftmax.after:
            raise ValueError(
                "model.n_expert_active=1 with model.router_softmax=after weights every choice by 1, from which no "
                "router learns; set model.router_softmax=before"
            )
        if self.norm_placement is NormPlacement.post:
            raise ValueError(
                f"model.n_expert={self.n_expert} goes with model.norm_placement=pre alone; "
                "set that, or model.n_expert=null"
            )


@dataclass(kw_only=True, slots=True)
class EncoderConfig(ModelConfig):
    """An encoder that looks both ways; the defaults are BERT's."""

    architecture: str = "encoder"
    feedforward: Feedforward = Feedforward.gelu_exact
    n_segment: int = 2  # kinds of text that a token can belong to
    norm_eps: float = 1e-12
    heads: Heads = Heads.pretraining
    dropout_attention: float | None = None  # null: dropout
    init_std: float = 0.02

    def dropout_at(self, place: str) -> float:
        """The rate at "attention" or elsewhere."""
        separate = place == "attention" and self.dropout_attention is not None
        return self.dropout_attention if separate else self.dropout

    def check(self) -> None:
        ModelConfig.check(self)
        self.at_least(1, "n_segment")
        self.above_zero("norm_eps", "init_std")


@dataclass(kw_only=True, slots=True)
class EncoderDecoderConfig(ModelConfig):
    """An encoder that is read by a decoder; the defaults are T5's.

    Positions are relative, so any length can be read; `context_length` is how long texts are in training.
    """

    architecture: str = "encoder_decoder"
    n_decoder_layer: int | None = None  # null: n_layer, which is the encoder's
    feedforward: Feedforward = Feedforward.relu
    n_position_bucket: int = 32  # ranges of distance that have a bias of their own
    max_distance: int = 128  # in tokens; those farther apart are all alike
    norm_eps: float = 1e-6
    tied_head: bool = True
    output_scaled: bool | None = None  # what the head reads, by d_model^-0.5; null: where the head is tied
    start_id: int = 0  # the token that the decoder reads first
    init_factor: float = 1.0  # of T5's own initial values

    @property
    def decoder_layers(self) -> int:
        return self.n_layer if self.n_decoder_layer is None else self.n_decoder_layer

    @property
    def last_blocks(self) -> int:
        return self.decoder_layers

    def linear_layers(self) -> dict[str, tuple[int, int, int]]:
        own = {
            name: (n_in, n_out, self.n_layer + self.decoder_layers)
            for name, (n_in, n_out, _) in ModelConfig.linear_layers(self).items()
        }
        cross = {name.replace("attn.", "cross."): size[:2] for name, size in own.items() if name.startswith("attn.")}
        return own | {name: (*size, self.decoder_layers) for name, size in cross.items()}

    @property
    def scales_output(self) -> bool:
        return self.tied_head if self.output_scaled is None else self.output_scaled

    def check(self) -> None:
        ModelConfig.check(self)
        self.at_least(1, "n_decoder_layer")
        self.at_least(0, "start_id")
        self.above_zero("norm_eps", "init_factor")
        if self.n_position_bucket < 4 or self.n_position_bucket % 2:
            raise ValueError(
                f"model.n_position_bucket={self.n_position_bucket} must be even and at least 4: the encoder has half "
                "of them for each direction"
            )
        if self.max_distance <= self.n_position_bucket // 2:
            raise ValueError(
                f"model.max_distance={self.max_distance} must be above half of "
                f"model.n_position_bucket={self.n_position_bucket}"
            )
        if self.vocab_size is not None and self.start_id >= self.vocab_size:
            raise ValueError(f"model.start_id={self.start_id} is outside model.vocab_size={self.vocab_size}")


ARCHITECTURES = {"decoder": DecoderConfig, "encoder": EncoderConfig, "encoder_decoder": EncoderDecoderConfig}


def model_from_plain(plain: dict[str, Any]) -> ModelConfig:
    """The config that `to_plain` made plain, as a checkpoint holds it; options it lacks have their defaults."""
    kind = ARCHITECTURES.get(plain.get("architecture"))
    if kind is None:
        raise ValueError(
            f"model.architecture={plain.get('architecture')} is unknown; known: {', '.join(ARCHITECTURES)}"
        )
    hints = get_type_hints(kind)
    unknown = sorted(plain.keys() - hints.keys())
    if unknown:
        raise ValueError(f"model.{unknown[0]} is an option that this version of gptlab does not know; upgrade gptlab")
    enums = {name for name in plain if isinstance(hints[name], type) and issubclass(hints[name], Enum)}
    return kind(**{name: hints[name](value) if name in enums else value for name, value in plain.items()})
