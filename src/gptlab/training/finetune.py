"""Which parameters of a model are trained."""

from torch import nn

from gptlab.models.config import ModelConfig
from gptlab.nn.attention import Attention
from gptlab.nn.lora import ADAPTERS, LoRALinear
from gptlab.training.config import FinetuneConfig, Finetuning

# What reads the last block's output, beside a head that is the table of words: it is trained with the last blocks.
AFTER_BLOCKS = ("final_norm.", "decoder.final_norm.", "pooler.", "mlm.", "nsp.", "lm_head.")
CLASS_HEAD = "class_head."


def prepare_finetuning(model: nn.Module, config: FinetuneConfig, of: ModelConfig) -> None:
    """Give `model`, which may be on the meta device, its adapters, and freeze what is not trained."""
    if config.type is Finetuning.lora:
        for block in model.blocks:
            _adapt(block, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, config, of))


def is_trained(name: str, config: FinetuneConfig, of: ModelConfig) -> bool:
    """Whether a parameter of that name is trained."""
    match config.type:
        case Finetuning.full:
            return True
        case Finetuning.lora:
            return name.endswith(ADAPTERS) or name.startswith(CLASS_HEAD)
        case Finetuning.last_layers:
            blocks = "decoder.blocks." if of.type == "encoder_decoder" else "blocks."
            if name.startswith(blocks):
                return (
                    int(name.removeprefix(blocks).split(".")[0])
                    >= (of.decoder_layers if of.type == "encoder_decoder" else of.n_layer) - config.n_layer
                )
            return name.startswith((*AFTER_BLOCKS, CLASS_HEAD))


def _adapt(block: nn.Module, config: FinetuneConfig) -> None:
    for name in config.target_modules:
        place, _, last = name.rpartition(".")
        if place == "cross" and not hasattr(block, place):  # an encoder's block
            continue
        parent = block.get_submodule(place)
        own = getattr(parent, last)
        options = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
        with own.weight.device:
            adapted = LoRALinear(own.in_features, own.out_features, bias=own.bias is not None, **options)
        setattr(parent, last, adapted)
        if isinstance(parent, Attention):
            parent.joint_projection = False  # it reads weights; q, k and v are called as modules
