"""Config schema: models. What every architecture has, and what every transformer has."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds
from gptlab.registry import config_class
from gptlab.values import from_plain

if TYPE_CHECKING:
    from gptlab.models.base import LanguageModel


class Capability(Enum):
    """What a model can be asked for; objectives and commands ask for these, never for an architecture."""

    causal = "causal"  # each token's state depends on the tokens before it alone
    bidirectional = "bidirectional"  # each token's state depends on all tokens; padding is masked
    encoder_decoder = "encoder_decoder"  # reads a source text and predicts a target text
    mlm_head = "mlm_head"  # `mlm_transform` and a head for masked positions
    nsp_head = "nsp_head"  # `next_sentence` scores
    pooler = "pooler"  # `pooled`, one state for the whole text
    document_ids = "document_ids"  # attention can be confined to a document of a sequence that holds several


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


class Parametrization(Enum):
    """How initial values, learning rates and multipliers follow from the size of a model.

    All are the same for a model of the base width and depth.
    """

    standard = "standard"  # each recipe is of one size
    mup = "mup"  # by width: the maximal update parametrization (arXiv:2203.03466, table 8)
    completep = "completep"  # by width and depth (arXiv:2505.01618, table 1, alpha = 1)


class Kind(Enum):
    """Which dimensions of a parameter grow with the width of the model."""

    input = "input"  # its outputs alone: embeddings. And the head over the vocabulary, which divides logits instead
    hidden = "hidden"  # inputs and outputs
    output = "output"  # its inputs alone: routers, and heads over classes
    vector = "vector"  # of one dimension: biases, gains of norms


class Role(NamedTuple):
    """What a network says of one of its parameters, for its initial scale and its learning rate."""

    kind: Kind
    residual: bool  # within a residual branch, which completep multiplies by 1 / depth


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every model has; an architecture registers a subclass with `build`."""

    type: str = ""
    vocab_size: int | None = bounded(None, ge=1)  # null: the tokenizer's
    context_length: int = bounded(256, ge=1)
    init_from: str | None = None  # weights to start from: a run folder, a .ckpt, a transformers folder or a hub name
    n_layer: int = bounded(6, ge=1, le=2_000)
    d_model: int = bounded(384, ge=1)
    dropout: float = bounded(0.0, ge=0, lt=1)
    parametrization: Parametrization = Parametrization.standard
    base_d_model: int | None = bounded(None, ge=1)  # mup, completep: the width at which it is as standard
    base_n_layer: int | None = bounded(None, ge=1)  # completep: the depth at which it is

    def build(self, vocab_size: int) -> "LanguageModel":
        """The network; the caller chooses the device (`with torch.device("meta")`)."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What objectives may ask of this model."""
        return frozenset({Capability.causal})

    @property
    def decoder_start_token_id(self) -> int:
        """The token from which the decoder of a model with the capability encoder_decoder predicts the first one."""
        raise NotImplementedError(f"{type(self).__name__} promises no {Capability.encoder_decoder}")

    def remedy(self, missing: frozenset[Capability]) -> str:
        """What to set so that the model has these capabilities too; empty where nothing helps."""
        return ""

    def extends(self, other: "ModelConfig") -> bool:
        """Whether this is the other model made ready for a longer context, and may start from its weights."""
        return False

    def longer_than(self, other: "ModelConfig") -> str:
        """The overrides that make this the other model ready for this one's context; empty where nothing does."""
        return ""

    @property
    def auxiliary_terms(self) -> tuple[str, ...]:
        """Names of the losses and measurements that the model adds in training."""
        return ()

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        """Those that the network has the roles, initial values and multipliers for."""
        return frozenset({Parametrization.standard})

    @property
    def width_ratio(self) -> float:
        """The width by that of the base model, with which all of its widths grow; 1 where nothing is scaled."""
        return 1.0 if self.base_d_model is None else self.d_model / self.base_d_model

    @property
    def depth_ratio(self) -> float:
        """The same of the depth."""
        return 1.0 if self.base_n_layer is None else self.n_layer / self.base_n_layer

    def tensor_parallel_dims(self) -> dict[str, int] | None:
        """Sizes that tensor parallelism divides, by the keys that set them; None where it is not supported."""
        return None

    def check(self) -> None:
        """Refuse what no model of this kind can have."""
        if self.init_from == "":
            raise UserError(
                "model.init_from= is empty; name a run folder, a .ckpt file or a transformers folder, or leave it out"
            )
        check_bounds(self, "model.")
        self._check_parametrization()

    def _check_parametrization(self) -> None:
        given = self.parametrization
        if given not in self.parametrizations:
            known = " or ".join(one.value for one in Parametrization if one in self.parametrizations)
            raise UserError(
                f"model.parametrization={given.value} is not supported by {self._kind()}; "
                f"use model.parametrization={known}"
            )
        for key, needed, own in (
            ("base_d_model", given is not Parametrization.standard, self.d_model),
            ("base_n_layer", given is Parametrization.completep, self.n_layer),
        ):
            base = getattr(self, key)
            if needed and base is None:
                what = "width" if key == "base_d_model" else "depth"
                raise UserError(
                    f"model.parametrization={given.value} needs model.{key}, the {what} of the model whose learning "
                    f"rate is known, such as model.{key}={max(1, own // 4)}"
                )
            if not needed and base is not None:
                owners = "completep" if key == "base_n_layer" else "mup or completep"
                raise UserError(
                    f"model.{key}={base} has no effect on model.parametrization={given.value}; "
                    f"set model.parametrization={owners}, or model.{key}=null"
                )

    def _kind(self) -> str:
        """The model, as errors about its parametrization call it."""
        return f"a model of model.type={self.type}"


@dataclass(kw_only=True, slots=True)
class TransformerConfig(ModelConfig):
    """What every transformer has."""

    n_head: int = bounded(6, ge=1)
    d_head: int | None = bounded(None, ge=1)  # null: d_model / n_head
    d_ff: int | None = bounded(None, ge=1)  # null: 4 d_model (swiglu, geglu: 8/3 d_model, up to a multiple of 64)
    feedforward: Feedforward = Feedforward.gelu
    base_d_head: int | None = bounded(None, ge=1)  # mup, completep: the width of a head in the base model

    @property
    def n_expert(self) -> int | None:
        """Experts in each block; None where a block has one feedforward."""
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

    def scaled_scores(self, scale: float | None) -> float | None:
        """The scale of attention scores by the base model's, `scale`, each where None is d_head^-0.5.

        Queries and keys come to point the same way, so that their product grows with d_head and not with its root.
        """
        own, base = self.head_width, self.base_d_head
        if base is None or base == own:
            return scale
        return (base**-0.5 if scale is None else scale) * base / own

    def tensor_parallel_dims(self) -> dict[str, int] | None:
        return {
            f"model.n_head={self.n_head}": self.n_head,
            f"model.n_kv_head={self.kv_heads}": self.kv_heads,
            f"model.d_ff={self.ff_width}": self.ff_width,
        }

    def check(self) -> None:
        ModelConfig.check(self)
        if self.d_head is None and self.d_model % self.n_head:
            raise UserError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}; "
                f"use a multiple of {self.n_head} or set model.d_head"
            )
        own, base = self.head_width, self.base_d_head
        if self.parametrization is Parametrization.standard:
            if base is not None:
                raise UserError(
                    f"model.base_d_head={base} has no effect on model.parametrization=standard; "
                    "set model.parametrization=mup or completep, or model.base_d_head=null"
                )
        elif base is None and self.d_model != self.base_d_model:
            fewer = f"model.base_d_head={own} where the base model has fewer heads, as wide as here"
            if self.n_head * own == self.d_model and (self.base_d_model or 0) % self.n_head == 0:
                as_many = (self.base_d_model or 0) // self.n_head
                fewer += f", or model.base_d_head={as_many} where it has as many, less wide"
            raise UserError(
                f"model.parametrization={self.parametrization.value} needs the width of a head in the base model; "
                f"set {fewer}"
            )


def model_from_plain(plain: dict[str, Any], where: str = "") -> ModelConfig:
    """The config that `to_plain` made plain, as a checkpoint holds it; keys that it lacks have their defaults."""
    return from_plain(config_class("model", plain.get("type"), where), plain, "model", where)
