"""From a config to an objective."""

from gptlab.config import RunConfig
from gptlab.data.tokenizer import Tokenizer
from gptlab.objectives.causal_lm import CausalLM
from gptlab.objectives.config import CausalLMConfig
from gptlab.objectives.objective import Objective

CLASSES = {CausalLMConfig: CausalLM}


def build_objective(config: RunConfig, tokenizer: Tokenizer) -> Objective:
    """The objective that `config` names, for texts of `tokenizer`."""
    return CLASSES[type(config.objective)](config, tokenizer)
