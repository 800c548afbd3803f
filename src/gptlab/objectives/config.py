"""What a run may say about its objective."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What every objective has."""

    name: str


@dataclass(kw_only=True, slots=True)
class CausalLMConfig(ObjectiveConfig):
    """Predict each token from those before it."""

    name: str = "causal_lm"


OBJECTIVES = {"causal_lm": CausalLMConfig}
