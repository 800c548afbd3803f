"""From a config to a model with its initial values."""

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import Init
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.models.heads import ClassHead
from gptlab.nn.lora import ADAPTERS
from gptlab.nn.moe import GroupedLinear

RESIDUAL_PROJECTIONS = ("attn.out.weight", "ffn.down.weight", "ffn.experts.down.weight", "ffn.shared.down.weight")


def build_model(config: ModelConfig, vocab_size: int, *, seed: int) -> nn.Module:
    """Build the model on the CPU, with initial values that depend on the seed and on each parameter's name."""
    config.check()
    model = shape_model(config, vocab_size).to_empty(device="cpu")
    init_weights(model, config, seed)
    return model


def shape_model(config: ModelConfig, vocab_size: int, n_class: int | None = None) -> nn.Module:
    """Build the model on the meta device: shapes and names, no values and no memory.

    With `n_class` it has a `class_head` for so many classes.
    """
    with torch.device("meta"):
        model = config.build(vocab_size)
        if n_class is not None:
            model.class_head = ClassHead(config.d_model, n_class, dropout=config.dropout)
    return model


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give each parameter its initial value, on whatever device it is."""
    for _, parameter, value in initial_values(model, config, seed):
        parameter.copy_(value)


def initial_values(
    model: nn.Module, config: ModelConfig, seed: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield name, parameter and initial value (whole, float32, on the CPU), one parameter at a time.

    A value is a function of seed, name and shape only, so that any sharding starts from the same model. `wanted` says
    of which names.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if wanted(name):
                yield name, parameter, _initial_value(name, parameter, module, config, seed)


def _initial_value(name: str, parameter: Tensor, module: nn.Module, config: ModelConfig, seed: int) -> Tensor:
    value = torch.empty(parameter.shape, device="cpu")
    if not isinstance(module, nn.Linear | GroupedLinear | nn.Embedding):  # a norm, or the bias of a table of words
        return value.fill_(getattr(config, "init_factor", 1.0) if name.endswith("weight") else 0.0)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    if name.endswith(ADAPTERS):  # kaiming_uniform_ with a = sqrt(5) into the low rank, and nothing out of it yet
        bound = 0.0 if name.endswith(".lora_up") else module.in_features**-0.5
        return value.uniform_(-bound, bound, generator=generator)
    if isinstance(config, EncoderConfig):
        return value.zero_() if name.endswith("bias") else value.normal_(std=config.init_std, generator=generator)
    if isinstance(config, EncoderDecoderConfig):
        return value.normal_(std=config.init_factor * _t5_std(name, module, config), generator=generator)
    embedding = isinstance(module, nn.Embedding)
    residual = name.endswith(RESIDUAL_PROJECTIONS)

    if config.init is Init.torch:
        if embedding:
            return value.normal_(generator=generator)
        bound = module.in_features**-0.5  # kaiming_uniform_ with a = sqrt(5), as nn.Linear has it
        return value.uniform_(-bound, bound, generator=generator)
    if name.endswith("bias"):
        return value.zero_()
    if config.init in (Init.gpt2, Init.normal):
        shrinks = residual and config.init is Init.gpt2
        std = config.init_std / math.sqrt(2 * config.n_layer) if shrinks else config.init_std
        return value.normal_(std=std, generator=generator)
    # Init.zero: each block starts as the identity and an untied head as the uniform distribution. Embeddings are of
    # unit size, unless they are the head as well, whose logits would then be too large. Other matrices have the
    # variance that nn.Linear gives them.
    if residual or name == "lm_head.weight":
        return value.zero_()
    if embedding:
        return value.normal_(std=config.init_std if config.tie_embeddings else 1.0, generator=generator)
    return value.normal_(std=(3 * module.in_features) ** -0.5, generator=generator)


def _t5_std(name: str, module: nn.Module, config: EncoderDecoderConfig) -> float:
    """What T5's own code begins with (mesh-tensorflow, as transformers has it): the table and an untied head of unit
    size, matrices that keep the variance, and queries that make up for scores without a scale."""
    if name in ("tok_emb.weight", "lm_head.weight"):
        return 1.0
    if isinstance(module, nn.Embedding):  # biases of relative positions
        return config.d_model**-0.5
    queries = name.endswith((".attn.q.weight", ".cross.q.weight"))
    return (module.in_features * (config.head_width if queries else 1)) ** -0.5
