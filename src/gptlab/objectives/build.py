"""From a config to an objective."""

from gptlab.objectives.causal_lm import CausalLM
from gptlab.objectives.config import CausalLMConfig, ObjectiveConfig

CLASSES = {CausalLMConfig: CausalLM}


def build_objective(config: ObjectiveConfig) -> CausalLM:
    """The objective that `config` names."""
    return CLASSES[type(config)](config)
