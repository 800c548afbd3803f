"""A model layer by layer: shapes, parameters and multiply-adds, counted on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from gptlab.costs import WITH_LM_HEAD
from gptlab.counting import Meter
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability


@dataclass(frozen=True, slots=True)
class Layer:
    """One module, or several alike."""

    name: str
    kind: str  # class name
    input: tuple[int, ...] | None  # shapes, the batch first
    output: tuple[int, ...] | None
    parameters: int  # its own and those of the modules inside it
    multiply_adds: int  # of a forward pass, likewise
    count: int = 1  # how many there are of these


def layers(model: LanguageModel, context_length: int, *, target_length: int | None = None) -> list[Layer]:
    """Describe every module that computes or holds parameters, in the order of a forward pass over one sequence.

    Blocks that are alike are given once, with their number. The last entry is the output head where there is one; a
    tied head has no parameters of its own. Raises RuntimeError where the model does not run on the meta device.
    """
    encoder_decoder = Capability.encoder_decoder in model.config.capabilities
    source = torch.zeros((1, context_length), dtype=torch.int64, device="meta")
    tokens = source.new_zeros((1, target_length or context_length)) if encoder_decoder else source
    meter, found, began = Meter(model), {}, []

    def begin(module: nn.Module, *_: Any) -> None:
        began.append(meter.flops)

    def end(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        flops = meter.flops - began.pop()
        own = sum(parameter.numel() for parameter in module.parameters())
        if own or flops:
            found[name] = Layer(
                name, type(module).__name__, _shape((args, kwargs)), _shape(output), own, round(flops / 2)
            )

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(begin))
            hooks.append(module.register_forward_hook(lambda *given, name=name: end(name, *given), with_kwargs=True))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), meter.running():
            hidden = model.hidden_states(tokens, **({"source": source} if encoder_decoder else {}))
            if Capability.mlm_head in model.config.capabilities:
                hidden = model.mlm_transform(hidden)
            if Capability.pooler in model.config.capabilities:
                model.pooled(hidden)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    result = _collapse(model, sorted(found.values(), key=lambda layer: order[layer.name]))
    if model.config.capabilities & WITH_LM_HEAD:
        weight, own = model.head.weight, dict(model.named_parameters())
        name = next(name for name, parameter in own.items() if parameter is weight)
        tied = not name.startswith("lm_head")
        n = tokens.numel()
        result.append(
            Layer(
                f"head (tied to {name})" if tied else "lm_head",
                "LMHead",
                (1, n, weight.shape[1]),
                (1, n, weight.shape[0]),
                0 if tied else weight.numel(),
                n * weight.numel(),
            )
        )
    return result


def _collapse(model: LanguageModel, found: list[Layer]) -> list[Layer]:
    """Blocks that are alike once."""
    names = {module: name for name, module in model.named_modules()}
    inside = {}
    for block in model.blocks:
        inside[names[block]] = [layer for layer in found if f"{layer.name}.".startswith(f"{names[block]}.")]
    groups: dict[tuple, list[str]] = {}
    for name, parts in inside.items():
        alike = tuple((p.name[len(name) :], p.kind, p.input, p.output, p.parameters, p.multiply_adds) for p in parts)
        groups.setdefault((name.rpartition(".")[0], alike), []).append(name)
    result, of_block = [], {part.name: name for name, parts in inside.items() for part in parts}
    for layer in found:
        block = of_block.get(layer.name)
        if block is None:
            result.append(layer)
            continue
        group = next(group for group in groups.values() if block in group)
        if block == group[0]:
            result.append(
                Layer(
                    layer.name, layer.kind, layer.input, layer.output, layer.parameters, layer.multiply_adds, len(group)
                )
            )
    return result


def _shape(values: Any) -> tuple[int, ...] | None:
    """The shape of the first tensor."""
    return next((tuple(x.shape) for x in tree_flatten(values)[0] if isinstance(x, Tensor)), None)
