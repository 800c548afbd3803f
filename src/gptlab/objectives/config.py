"""Config schema: objectives."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gptlab.data.config import AttentionScope, DataConfig, Packing, RunDataConfig, TargetKind
from gptlab.data.sources.config import TableConfig
from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds
from gptlab.models.config import Capability, ModelConfig
from gptlab.registry import register, variants

if TYPE_CHECKING:
    from gptlab.data.tokenizers.tokenizer import Tokenizer
    from gptlab.objectives.base import Objective


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What every objective has; each registers a subclass with `build`."""

    target_kinds: ClassVar[tuple[TargetKind, ...]] = ()  # kinds of examples that it learns from; none: plain text
    continues: ClassVar[bool] = False  # whether a preview can continue a prompt
    shortens: ClassVar[bool] = False  # whether it learns from parts of a sequence as from sequences
    packs: ClassVar[bool] = False  # whether it obeys data.packing, data.attention and data.boundary_targets

    type: str = ""

    def build(
        self, *, tokenizer: "Tokenizer", model: ModelConfig, data: DataConfig, context_length: int, seed: int
    ) -> "Objective":
        """The objective for texts of `tokenizer`, in sequences of `context_length` tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    @property
    def needs(self) -> tuple[frozenset[Capability], ...]:
        """Sets of capabilities of which the model must have one whole."""
        return (frozenset({Capability.causal}),)

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_bounds(self, "objective.")

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a model that lacks what this objective needs."""
        if any(need <= model.capabilities for need in self.needs):
            return
        for need in self.needs:
            if remedy := model.remedy(need - model.capabilities):
                names = " and ".join(sorted(c.value for c in need - model.capabilities))
                raise UserError(f"objective={self.type} needs a model with {names}; {remedy}")
        fitting = [
            name
            for name, kind in variants("objective").items()
            if any(need <= model.capabilities for need in kind().needs)
        ]
        raise UserError(
            f"objective={self.type} does not fit a model of model.type={model.type}; "
            + (f"use objective={' or '.join(fitting)}" if fitting else "use another model")
        )

    def check_data(self, data: RunDataConfig) -> None:
        """Refuse a corpus of another kind than this objective learns from, and sequences that it does not make."""
        kind = data.target_kind
        if kind is None:
            if self.target_kinds:
                raise UserError(
                    f"objective={self.type} learns from the records of a table, and data={data.type} is text; use "
                    "data=table data.path=FILE, or data=function_packages or function_summaries, which need no file"
                )
        elif kind not in self.target_kinds:
            fitting = [name for name, other in variants("objective").items() if kind in other.target_kinds]
            raise UserError(
                f"objective={self.type} does not learn from examples with a {kind.value}; "
                f"use objective={' or '.join(fitting)}"
            )
        self._check_sequences(data)

    def _check_sequences(self, data: RunDataConfig) -> None:
        own = Packing.stream if data.target_kind is None else Packing.none
        given = {
            f"data.packing={data.packed.value}": data.packed is not own,
            f"data.attention={AttentionScope(data.attention).value}": data.attention is not AttentionScope.sequence,
            "data.boundary_targets=false": not data.boundary_targets,
        }
        if not self.packs and any(given.values()):
            key = next(key for key, is_given in given.items() if is_given)
            fitting = " or ".join(name for name, other in variants("objective").items() if other.packs)
            raise UserError(f"{key} works with objective={fitting} alone, not with {self.type}; leave it out")


@register("objective", "causal_lm")
class CausalLMConfig(ObjectiveConfig):
    """Predict each token from those before it."""

    continues: ClassVar[bool] = True
    shortens: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    def build(self, *, tokenizer, model, data, context_length, seed):
        from gptlab.objectives.causal_lm import CausalLM

        return CausalLM(data=data, context_length=context_length, tokenizer=tokenizer)


@register("objective", "masked_lm")
class MaskedLMConfig(ObjectiveConfig):
    """Predict masked tokens from both sides, and whether one segment follows another; BERT's defaults."""

    mask_prob: float = bounded(0.15, gt=0, lt=1, hint="BERT has 0.15")  # of the tokens, to be predicted
    mask_replace_prob: float = bounded(0.8, ge=0, le=1)  # of these, replaced by the mask token
    random_replace_prob: float = bounded(0.1, ge=0, le=1)  # of these, replaced by a random token; the others stay
    next_sentence: bool = True

    def build(self, *, tokenizer, model, data, context_length, seed):
        from gptlab.objectives.masked_lm import MaskedLM

        return MaskedLM(self, tokenizer, data=data, context_length=context_length, seed=seed)

    @property
    def needs(self) -> tuple[frozenset[Capability], ...]:
        heads = {Capability.mlm_head, Capability.nsp_head} if self.next_sentence else {Capability.mlm_head}
        return (frozenset({Capability.bidirectional, *heads}),)

    def check(self) -> None:
        super().check()
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise UserError(
                f"objective.mask_replace_prob={self.mask_replace_prob} and "
                f"objective.random_replace_prob={self.random_replace_prob} are fractions of the same tokens; "
                "their sum must not exceed 1"
            )

    def check_data(self, data: RunDataConfig) -> None:
        super().check_data(data)
        strides = [source.stride for source in data.corpora.values() if source.stride is not None]
        if self.next_sentence and strides:
            raise UserError(
                f"data.stride={max(strides)} is for sliding windows, and segment pairs are chunks of documents; "
                "leave it out, or set objective.next_sentence=false"
            )


@register("objective", "span_corruption")
class SpanCorruptionConfig(ObjectiveConfig):
    """Replace spans by sentinel tokens and predict them; T5's defaults."""

    noise_density: float = bounded(0.15, gt=0, lt=1, hint="T5 has 0.15")  # of the tokens, to be replaced
    mean_noise_span_length: float = bounded(3.0, ge=1, hint="T5 has 3")  # tokens

    def build(self, *, tokenizer, model, data, context_length, seed):
        from gptlab.objectives.span_corruption import SpanCorruption

        start = model.decoder_start_token_id
        return SpanCorruption(
            self, tokenizer, data=data, context_length=context_length, seed=seed, decoder_start_token_id=start
        )

    @property
    def needs(self) -> tuple[frozenset[Capability], ...]:
        return (frozenset({Capability.encoder_decoder}),)


@register("objective", "classification")
class ClassificationConfig(ObjectiveConfig):
    """Predict a text's class; with a causal model also its tokens (GPT, equation 5: L3 = L2 + lambda L1)."""

    target_kinds: ClassVar[tuple[TargetKind, ...]] = (TargetKind.label,)
    lm_weight: float = bounded(0.0, ge=0, hint="GPT has 0.5")  # lambda, the weight of predicting the tokens

    def build(self, *, tokenizer, model, data, context_length, seed):
        from gptlab.objectives.classification import Classification

        assert isinstance(data, TableConfig), "a config whose source has records extends TableConfig"
        return Classification(
            self,
            tokenizer,
            data=data,
            context_length=context_length,
            pooled=Capability.pooler in model.capabilities,
        )

    @property
    def needs(self) -> tuple[frozenset[Capability], ...]:
        return (frozenset({Capability.causal}), frozenset({Capability.bidirectional, Capability.pooler}))

    def check_model(self, model: ModelConfig) -> None:
        super().check_model(model)
        if self.lm_weight and Capability.causal not in model.capabilities:
            raise UserError(
                f"objective.lm_weight={self.lm_weight} is the weight of predicting the next token, which a "
                "bidirectional model does not; set objective.lm_weight=0"
            )


@register("objective", "instruction")
class InstructionConfig(ObjectiveConfig):
    """Predict a response from its prompt, whose tokens are not targets."""

    target_kinds: ClassVar[tuple[TargetKind, ...]] = (TargetKind.response, TargetKind.messages)
    continues: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    def build(self, *, tokenizer, model, data, context_length, seed):
        from gptlab.objectives.instruction import Instruction

        assert isinstance(data, TableConfig), "a config whose source has records extends TableConfig"
        separate = Capability.encoder_decoder in model.capabilities
        return Instruction(
            tokenizer,
            data=data,
            context_length=context_length,
            decoder_start_token_id=model.decoder_start_token_id if separate else None,
        )

    @property
    def needs(self) -> tuple[frozenset[Capability], ...]:
        return (frozenset({Capability.causal}), frozenset({Capability.encoder_decoder}))
