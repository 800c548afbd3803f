"""Fine-tuning: which parameters of a model are trained, and what a checkpoint trained in part holds."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.fields import shown
from gptlab.models.base import LanguageModel
from gptlab.nn.lora import ADAPTERS, LoRALinear, Merged
from gptlab.training.config import FinetuneConfig, Finetuning

CLASS_HEAD = "class_head."


def prepare_finetuning(model: LanguageModel, config: FinetuneConfig) -> None:
    """Add adapters to `model`, which may be on the meta device, and freeze what is not trained.

    UserError where the model has no such layers, or fewer blocks.
    """
    trained: list[nn.Parameter] = []
    match config.type:
        case Finetuning.full:
            return
        case Finetuning.lora:
            _add_adapters(model, config)
            trained += [parameter for name, parameter in model.named_parameters() if name.endswith(ADAPTERS)]
        case Finetuning.last_layers:
            blocks, n_layer = list(model.output_blocks), config.n_layer or 0
            if n_layer > len(blocks):
                raise UserError(
                    f"finetune.n_layer={n_layer} is more than the {len(blocks)} blocks before this model's "
                    "head; use that many or fewer"
                )
            for module in (*blocks[len(blocks) - n_layer :], *model.output_modules):
                trained += module.parameters()
    if model.class_head is not None:
        trained += model.class_head.parameters()
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def weights_of(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights by name in a checkpoint's content `state`, with adapters merged in."""
    finetune = state["config"].get("finetune", {})
    if finetune.get("type") != Finetuning.lora.value:
        return state["model"]
    return Merged(state["model"], alpha=finetune["alpha"])


def _add_adapters(model: LanguageModel, config: FinetuneConfig) -> None:
    layers = [model.linear_layers(block) for block in model.blocks]
    known = list(dict.fromkeys(name for found in layers for name in found))
    for name in config.target_modules:
        if name not in known:
            raise UserError(
                f"finetune.target_modules={shown(config.target_modules)}: {_why_not(model, name)}; "
                f"choose from {', '.join(known)}"
            )
    for block, found in zip(model.blocks, layers, strict=True):
        for name in config.target_modules:
            if name in found:
                _adapt(block, name, found[name], config)


def _why_not(model: LanguageModel, name: str) -> str:
    inside = {inner for block in model.blocks for inner, _ in block.named_modules()}
    parent, _, last = name.rpartition(".")
    if (name if ".experts." in name else f"{parent}.experts.{last}") in inside:
        return f"{name} is a layer of the experts, which take no adapters"
    return f"{name} is no layer of this model's blocks"


def _adapt(block: nn.Module, name: str, layer: nn.Linear, config: FinetuneConfig) -> None:
    with layer.weight.device:
        adapted = LoRALinear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
        )
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, adapted)
