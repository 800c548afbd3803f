"""Config schema: models. What every architecture has, and what every transformer has."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

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


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every model has; an architecture registers a subclass with `build`."""

    type: str = ""
    vocab_size: int | None = bounded(None, ge=1)  # null: the tokenizer's
    context_length: int = bounded(256, ge=1)
    init_from: str | None = None  # weights to start from: a run folder, a .ckpt, a transformers folder or a hub name
    n_layer: int = bounded(6, ge=1)
    d_model: int = bounded(384, ge=1)
    dropout: float = bounded(0.0, ge=0, lt=1)

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


@dataclass(kw_only=True, slots=True)
class TransformerConfig(ModelConfig):
    """What every transformer has."""

    n_head: int = bounded(6, ge=1)
    d_head: int | None = bounded(None, ge=1)  # null: d_model / n_head
    d_ff: int | None = bounded(None, ge=1)  # null: 4 d_model (swiglu, geglu: 8/3 d_model, up to a multiple of 64)
    feedforward: Feedforward = Feedforward.gelu

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


def model_from_plain(plain: dict[str, Any], where: str = "") -> ModelConfig:
    """The config that `to_plain` made plain, as a checkpoint holds it; keys that it lacks have their defaults."""
    return from_plain(config_class("model", plain.get("type"), where), plain, "model", where)
