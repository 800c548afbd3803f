"""Config schema: decoder-only transformers."""

import math
from dataclasses import fields
from enum import Enum
from typing import NamedTuple

from gptlab.errors import UserError
from gptlab.fields import bounded, shown
from gptlab.models.config import Capability, ModelConfig, Parametrization, TransformerConfig
from gptlab.registry import register


class Position(Enum):
    """How the order of tokens enters."""

    learned = "learned"
    sinusoidal = "sinusoidal"  # sines and cosines, added to the token embeddings times sqrt(d_model) (Transformer)
    rotary = "rotary"
    none = "none"


class RopeType(Enum):
    """How rotary frequencies are changed for a context longer than the one trained with."""

    default = "default"
    linear = "linear"  # all slowed alike
    ntk = "ntk"  # by a larger base: slow ones more than fast ones
    yarn = "yarn"  # slow ones alone, and the scores sharpened
    llama3 = "llama3"  # slow ones alone


class Norm(Enum):
    """The normalization of each sublayer."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class NormPlacement(Enum):
    """Where a sublayer is normalized."""

    pre = "pre"  # its input, and once more after the last block (GPT-2)
    post = "post"  # the residual stream after each addition, and nothing after the last block (GPT-1)


class AttentionPattern(Enum):
    """How far back each block attends."""

    dense = "dense"
    alternating = "alternating"  # every second block, from the second on, sees `attention_window` tokens (GPT-3)
    sliding_window = "sliding_window"  # every block does (Mistral)


class RouterSoftmax(Enum):
    """Which probabilities weight a token's experts."""

    before = "before"  # those among all experts (Switch)
    after = "after"  # those among the chosen experts (Mixtral)


class Init(Enum):
    """The distribution of initial weights."""

    gpt2 = "gpt2"  # normal, residual projections scaled by 1/sqrt(2 n_layer)
    normal = "normal"  # normal, all alike (GPT-1)
    torch = "torch"  # each layer's own default in PyTorch
    zero = "zero"  # normal, residual projections and an untied head at zero


# Keys that mean nothing for a model without experts.
EXPERT_KEYS = (
    *("n_expert_per_token", "n_shared_expert", "router_softmax", "capacity_factor"),
    *("router_aux_loss_coef", "router_z_loss_coef"),
)


# Keys that mean nothing with `rope_type=default`.
SCALING_KEYS = ("rope_factor", "rope_original_context", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor")


class Rotation(NamedTuple):
    """The rotary keys of a model as they take effect: None where one has no effect."""

    rope_theta: float
    rope_type: RopeType = RopeType.default
    rope_factor: float | None = None
    rope_original_context: int | None = None
    rope_beta_fast: float | None = None
    rope_beta_slow: float | None = None
    rope_attention_factor: float | None = None


@register("model", "decoder")
class DecoderConfig(TransformerConfig):
    """A decoder-only transformer; the defaults are GPT-2's."""

    n_kv_head: int | None = bounded(None, ge=1)  # null: n_head; fewer is grouped-query attention
    position: Position = Position.learned
    rope_theta: float = bounded(10_000.0, gt=0)
    rope_type: RopeType = RopeType.default
    rope_factor: float | None = bounded(None, ge=1, lt=math.inf)  # the context by the one trained with
    rope_original_context: int | None = bounded(None, ge=1)  # the context trained with; null: that by rope_factor
    rope_beta_fast: float | None = bounded(None, gt=0, lt=math.inf)  # turns in it that are kept; null: 32, llama3: 4
    rope_beta_slow: float | None = bounded(None, gt=0, lt=math.inf)  # turns in it that are slowed by the whole; null: 1
    rope_attention_factor: float | None = bounded(None, gt=0, lt=math.inf)  # of yarn; null: 0.1 ln(rope_factor) + 1
    token_shift: bool = False  # each token also reads the embedding of the one before it (RWKV)
    norm: Norm = Norm.layernorm
    norm_eps: float = bounded(1e-5, gt=0)
    norm_placement: NormPlacement = NormPlacement.pre
    attention_pattern: AttentionPattern = AttentionPattern.dense
    attention_window: int | None = bounded(None, ge=1)  # tokens that a sliding-window block sees, its own included
    n_expert: int | None = bounded(None, ge=1)  # experts in each block, each d_ff wide; null: one dense feedforward
    n_expert_per_token: int = bounded(2, ge=1)
    n_shared_expert: int | None = bounded(None, ge=1)  # experts beside them that every token uses
    router_softmax: RouterSoftmax = RouterSoftmax.after
    capacity_factor: float | None = bounded(None, gt=0)  # in training, in equal shares of a sequence's choices
    router_aux_loss_coef: float | None = bounded(0.01, gt=0)  # weight of the load-balancing loss; null: none
    router_z_loss_coef: float | None = bounded(0.001, gt=0)  # weight of the router's z-loss; null: none
    bias: bool = True  # of every linear layer but the head and the router, and of LayerNorm
    qkv_bias: bool | None = None  # null: bias
    qk_norm: bool = False
    attention_scale: float | None = bounded(None, gt=0)  # of the scores; null: d_head^-0.5; 1.0: unscaled
    tie_embeddings: bool = True
    logit_softcap: float | None = bounded(None, gt=0)
    dropout_embedding: float | None = bounded(None, ge=0, lt=1)  # null: dropout, likewise below
    dropout_attention: float | None = bounded(None, ge=0, lt=1)
    dropout_residual: float | None = bounded(None, ge=0, lt=1)
    init: Init = Init.gpt2
    init_std: float = bounded(0.02, gt=0)

    def build(self, vocab_size: int):
        from gptlab.models.decoder.network import Decoder

        return Decoder(self, vocab_size)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.causal, Capability.document_ids})

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        if self.position is Position.sinusoidal:  # whose token embeddings are multiplied by a root of the width
            return frozenset({Parametrization.standard})
        # A branch of which little is added does not stay small where its sum with the stream is normalized.
        left_out = {Parametrization.completep} if self.norm_placement is NormPlacement.post else set()
        return frozenset(Parametrization) - left_out

    def _kind(self) -> str:
        if self.position is Position.sinusoidal:
            return "a model with model.position=sinusoidal"
        if self.norm_placement is NormPlacement.post:
            return "a model with model.norm_placement=post"
        return super()._kind()

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def original_context(self) -> int:
        """The length, in tokens, of the context that rotary frequencies were trained with."""
        if self.rope_type is RopeType.default:
            return self.context_length
        if self.rope_original_context is not None:
            return self.rope_original_context
        return round(self.context_length / (self.rope_factor or 1))

    @property
    def rotation(self) -> "Rotation":
        """The rotary keys as they take effect."""
        factor, scaling = self.rope_factor or 1.0, self.rope_type
        if scaling is RopeType.ntk:  # another base and nothing else (arXiv:2309.00071, equation 16)
            theta = self.rope_theta * factor ** (self.head_width / (self.head_width - 2))
            return Rotation(rope_theta=theta)
        if scaling is RopeType.default:
            return Rotation(rope_theta=self.rope_theta)
        found = Rotation(rope_theta=self.rope_theta, rope_type=scaling, rope_factor=factor)
        if scaling is RopeType.linear:
            return found
        fast = 32.0 if scaling is RopeType.yarn else 4.0
        found = found._replace(
            rope_original_context=self.original_context,
            rope_beta_fast=self.rope_beta_fast or fast,
            rope_beta_slow=self.rope_beta_slow or 1.0,
        )
        if scaling is RopeType.llama3:
            return found
        # Queries and keys are each multiplied by it (equation 22).
        return found._replace(rope_attention_factor=self.rope_attention_factor or 0.1 * math.log(factor) + 1)

    def extends(self, other: ModelConfig) -> bool:
        if not isinstance(other, DecoderConfig) or self.position is not Position.rotary:
            return False
        own, theirs = self.rotation, other.rotation
        # A scaled model is scaled further in the same way, from the same context.
        betas = (own.rope_beta_fast, own.rope_beta_slow) == (theirs.rope_beta_fast, theirs.rope_beta_slow)
        same = self.rope_type is other.rope_type and betas
        return (
            self.context_length > other.context_length
            and self.original_context == other.original_context
            and self.rope_theta == other.rope_theta
            and (other.rope_type is RopeType.default or same)
        )

    def longer_than(self, other: ModelConfig) -> str:
        if not isinstance(other, DecoderConfig) or self.position is not Position.rotary:
            return ""
        kind = RopeType.yarn if other.rope_type is RopeType.default else other.rope_type
        return f"model.rope_type={kind.value} model.rope_factor={self.context_length / other.original_context:g}"

    @property
    def attention_biased(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def auxiliary_terms(self) -> tuple[str, ...]:
        if self.n_expert is None:
            return ()
        return ("balance_loss", "z_loss", "dropped_token_fraction", "max_expert_load")

    def window_of(self, block: int) -> int | None:
        """Tokens that a block sees, its own included; None where it sees all before."""
        sliding = self.attention_pattern is AttentionPattern.sliding_window or (
            self.attention_pattern is AttentionPattern.alternating and block % 2 == 1
        )
        return self.attention_window if sliding else None

    def dropout_at(self, place: str) -> float:
        """The rate at "embedding", "attention" or "residual"."""
        rate = getattr(self, f"dropout_{place}")
        return self.dropout if rate is None else rate

    def tensor_parallel_dims(self) -> dict[str, int] | None:
        dims = super().tensor_parallel_dims()
        if dims is None or self.n_expert is None:
            return dims
        del dims[f"model.d_ff={self.ff_width}"]
        dims[f"model.n_expert={self.n_expert}"] = self.n_expert
        if self.n_shared_expert:
            width = self.n_shared_expert * self.ff_width
            dims[f"model.n_shared_expert={self.n_shared_expert} times model.d_ff={self.ff_width}"] = width
        return dims

    def check(self) -> None:
        super().check()
        if self.n_head % self.kv_heads:
            divisors = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise UserError(
                f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}; use one of {divisors}"
            )
        if self.position is Position.rotary and self.head_width % 2:
            raise UserError(
                f"model.position=rotary rotates pairs of channels, and the head width is {self.head_width}; "
                "set an even model.d_head"
            )
        pattern, window = self.attention_pattern, self.attention_window
        if pattern is not AttentionPattern.dense and window is None:
            raise UserError(
                f"model.attention_pattern={pattern.value} needs a width; set model.attention_window, such as 256"
            )
        if pattern is AttentionPattern.dense and window is not None:
            raise UserError(
                f"model.attention_window={window} has no effect on model.attention_pattern=dense; "
                "set model.attention_pattern to alternating or sliding_window, or model.attention_window=null"
            )
        self._check_rope_scaling()
        self._check_experts()

    def _check_rope_scaling(self) -> None:
        scaling = self.rope_type
        used = {
            RopeType.default: (),
            RopeType.linear: ("rope_factor", "rope_original_context"),
            RopeType.ntk: ("rope_factor", "rope_original_context"),
            RopeType.llama3: ("rope_factor", "rope_original_context", "rope_beta_fast", "rope_beta_slow"),
            RopeType.yarn: SCALING_KEYS,
        }[scaling]
        for name in SCALING_KEYS:
            value = getattr(self, name)
            if value is not None and name not in used:
                raise UserError(
                    f"model.{name}={shown(value)} has no effect on model.rope_type={scaling.value}; "
                    + ("set model.rope_type, such as yarn" if scaling is RopeType.default else "leave it out")
                )
        if scaling is RopeType.default:
            return
        if self.position is not Position.rotary:
            raise UserError(
                f"model.rope_type={scaling.value} changes rotary frequencies, and model.position is "
                f"{self.position.value}; set model.position=rotary or model.rope_type=default"
            )
        if self.rope_factor is None:
            raise UserError(
                f"model.rope_type={scaling.value} needs model.rope_factor: model.context_length="
                f"{self.context_length} divided by the context that the model was trained with"
            )
        if scaling is RopeType.ntk and self.head_width < 4:
            raise UserError(f"model.rope_type=ntk needs a head width of 4 or more, not {self.head_width}")
        rotation = self.rotation
        if rotation.rope_beta_fast is not None and rotation.rope_beta_fast <= (rotation.rope_beta_slow or 0):
            raise UserError(
                f"model.rope_beta_fast={rotation.rope_beta_fast:g} must be above "
                f"model.rope_beta_slow={rotation.rope_beta_slow:g}"
            )

    def _check_experts(self) -> None:
        if self.n_expert is None:
            for option in fields(self):
                value = getattr(self, option.name)
                if option.name in EXPERT_KEYS and value != option.default:
                    raise UserError(
                        f"model.{option.name}={shown(value)} is about experts, and this model has none; "
                        "set model.n_expert, such as 8"
                    )
            return
        if self.n_expert_per_token > self.n_expert:
            raise UserError(
                f"model.n_expert_per_token={self.n_expert_per_token} is more than model.n_expert={self.n_expert}; "
                f"use 1 to {self.n_expert}"
            )
        if self.n_expert_per_token == 1 < self.n_expert and self.router_softmax is RouterSoftmax.after:
            raise UserError(
                "model.n_expert_per_token=1 with model.router_softmax=after weights every choice by 1, so the router "
                "gets no gradient; set model.router_softmax=before"
            )
        if self.norm_placement is NormPlacement.post:
            raise UserError(
                f"model.n_expert={self.n_expert} works with model.norm_placement=pre alone; "
                "set that, or model.n_expert=null"
            )
