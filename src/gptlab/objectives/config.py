"""What a run may say about its objective."""

from dataclasses import dataclass
from typing import ClassVar

from gptlab.data.config import RowForm


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What every objective has."""

    architectures: ClassVar[tuple[str, ...]]  # the models that it fits
    row_forms: ClassVar[tuple[RowForm, ...]] = ()  # the rows of tables that it learns from; none: from text
    continues: ClassVar[bool] = False  # it can show how its model goes on after a prompt

    name: str

    def check(self) -> None:
        """Refuse what cannot work."""


@dataclass(kw_only=True, slots=True)
class CausalLMConfig(ObjectiveConfig):
    """Predict each token from those before it."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    continues: ClassVar[bool] = True
    name: str = "causal_lm"


@dataclass(kw_only=True, slots=True)
class MaskedLMConfig(ObjectiveConfig):
    """Predict hidden words from the words around them, and whether one segment follows another; BERT's defaults."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    name: str = "masked_lm"
    share: float = 0.15  # of the tokens, to be predicted
    masked: float = 0.8  # of these, replaced by the mask word
    random: float = 0.1  # of these, replaced by any word; the others stay
    next_sentence: bool = True

    def check(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"objective.share={self.share} is outside (0, 1); BERT has 0.15")
        for name in ("masked", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)} is outside [0, 1]")
        if self.masked + self.random > 1:
            raise ValueError(
                f"objective.masked={self.masked} and objective.random={self.random} are shares of the same tokens; "
                "their sum must not exceed 1"
            )


@dataclass(kw_only=True, slots=True)
class SpanCorruptionConfig(ObjectiveConfig):
    """Replace spans by sentinels and write them out; T5's defaults."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    name: str = "span_corruption"
    share: float = 0.15  # of the tokens, to be replaced
    mean_span: float = 3.0  # tokens of a span on average

    def check(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"objective.share={self.share} is outside (0, 1); T5 has 0.15")
        if self.mean_span < 1:
            raise ValueError(f"objective.mean_span={self.mean_span} must be at least 1 token; T5 has 3")


@dataclass(kw_only=True, slots=True)
class ClassificationConfig(ObjectiveConfig):
    """Predict a text's label; with a decoder also its words (GPT, equation 5: L3 = L2 + lambda L1)."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder")
    row_forms: ClassVar[tuple[RowForm, ...]] = (RowForm.label,)
    name: str = "classification"
    lm_weight: float = 0.0  # lambda, the weight of predicting the words; GPT has 0.5

    def check(self) -> None:
        if self.lm_weight < 0:
            raise ValueError(f"objective.lm_weight={self.lm_weight} must be 0 or more; GPT has 0.5")


@dataclass(kw_only=True, slots=True)
class InstructionConfig(ObjectiveConfig):
    """Predict a response from its prompt, which is read and not learned."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")
    row_forms: ClassVar[tuple[RowForm, ...]] = (RowForm.response, RowForm.messages)
    continues: ClassVar[bool] = True
    name: str = "instruction"


OBJECTIVES = {
    config().name: config
    for config in (CausalLMConfig, MaskedLMConfig, SpanCorruptionConfig, ClassificationConfig, InstructionConfig)
}
