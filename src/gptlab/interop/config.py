"""Config schema: formats of model folders."""

from enum import Enum


class Format(Enum):
    """A format that a model can be read from; the first two can be written, too."""

    transformers = "transformers"
    gptlab = "gptlab"
    openai = "openai"  # the TensorFlow checkpoint of GPT-2
