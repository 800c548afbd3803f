"""From a config to an objective."""

from gptlab.config import RunConfig
from gptlab.data.tokenizer import Tokenizer
from gptlab.objectives.causal_lm import CausalLM
from gptlab.objectives.classification import Classification
from gptlab.objectives.instruction import Instruction
from gptlab.objectives.masked_lm import MaskedLM
from gptlab.objectives.objective import Objective
from gptlab.objectives.span_corruption import SpanCorruption

CLASSES = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": SpanCorruption,
    "classification": Classification,
    "instruction": Instruction,
}


def build_objective(config: RunConfig, tokenizer: Tokenizer) -> Objective:
    """The objective that `config` names, for texts of `tokenizer`."""
    return CLASSES[config.objective.name](config, tokenizer)
