"""What the transformers have in common: names of their parts, and tensor parallelism."""

from typing import cast

from torch import nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.tensor_parallel import Shardable, TensorGroup, TensorParallelPlan

# By the first of these that a parameter's name contains.
PARTS = {
    "tok_emb": "embedding",
    "pos_emb": "position",
    "seg_emb": "position",
    "position": "position",  # relative biases
    "attn": "attention",
    "cross": "attention",
    "ffn": "feedforward",
    "pooler": "pooler",
    "mlm": "head",
    "nsp": "head",
    "lm_head": "head",
    "emb_norm": "norm",
    "norm1": "norm",
    "norm2": "norm",
    "norm_cross": "norm",
    "final_norm": "norm",
}


class Transformer(LanguageModel):
    """A model of residual blocks with `attn` and `ffn`."""

    def check_length(self, n_tokens: int) -> None:
        """Refuse more tokens than there are positions."""
        if n_tokens > self.config.context_length:
            raise UserError(
                f"{n_tokens} tokens do not fit model.context_length={self.config.context_length}; "
                f"crop the input or set model.context_length={n_tokens}"
            )

    def tensor_parallel_plan(self, block: nn.Module) -> TensorParallelPlan:
        sublayers = {name: cast(Shardable, block.get_submodule(name)) for name in ("attn", "ffn")}
        splits = {
            f"{sublayer}.{name}": split
            for sublayer, module in sublayers.items()
            for name, split in module.splits().items()
        }

        def use_shard(group: TensorGroup) -> None:
            for module in sublayers.values():
                module.use_shard(group)

        return TensorParallelPlan(splits, use_shard)

    def _part_of(self, name: str) -> str:
        return next(PARTS[part] for part in name.split(".") if part in PARTS)
