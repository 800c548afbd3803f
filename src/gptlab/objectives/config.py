"""What a run may say about its objective."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What every objective has."""

    name: str
    architectures: ClassVar[tuple[str, ...]]  # the models that it fits


@dataclass(kw_only=True, slots=True)
class CausalLMConfig(ObjectiveConfig):
    """Predict each token from those before it."""

    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    name: str = "causal_lm"


OBJECTIVES = {"causal_lm": CausalLMConfig}
