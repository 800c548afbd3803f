"""What the transformers have in common: names of their parts, and tensor parallelism."""

from dataclasses import replace
from typing import cast

from torch import nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.config import Kind, ModelConfig, Parametrization, Role
from gptlab.nn.tensor_parallel import Shardable, TensorGroup, TensorParallelPlan
from gptlab.nn.token_shift import TokenShift

# By the first of these that a parameter's name contains.
PARTS = {
    "tok_emb": "embedding",
    "pos_emb": "position",
    "seg_emb": "position",
    "token_shift": "embedding",
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


# What reads the width and has a few outputs, whatever the width.
OUTPUTS = ("router.weight", "nsp.weight")
HEAD = "lm_head.weight"


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

    def _role_of(self, name: str, module: nn.Module) -> Role:
        residual = ".blocks." in f".{name}"
        if isinstance(module, nn.Embedding) or name == HEAD:
            return Role(Kind.input, residual)
        if name.endswith("bias") or isinstance(module, nn.LayerNorm | nn.RMSNorm | TokenShift):
            return Role(Kind.vector, residual)
        if not hasattr(module, "in_features"):
            return super()._role_of(name, module)
        return Role(Kind.output if name.endswith(OUTPUTS) else Kind.hidden, residual)

    def _factors(self, *, scores: float, branches: tuple[str, ...], logits: tuple[str, ...]) -> dict[str, float]:
        """Factors of weights and biases that take the place of multipliers.

        `scores` is that of the queries, `branches` are the suffixes of layers at the end of residual branches, and
        `logits` the parameters by which what the head reads, or the head itself, is multiplied.
        """
        found = dict.fromkeys(logits, self.logit_scale)
        for name, _ in self.named_parameters():
            layer = name.rpartition(".")[0]
            if layer.endswith((".attn.q", ".cross.q")):
                found[name] = scores
            elif f"{layer}.weight".endswith(branches):
                found[name] = 1 / self.config.depth_ratio
        return {name: factor for name, factor in found.items() if factor != 1.0}

    def _part_of(self, name: str) -> str:
        return next(PARTS[part] for part in name.split(".") if part in PARTS)


def standard(config: ModelConfig, **changes) -> ModelConfig:
    """The same shapes with parametrization=standard."""
    base = {"base_d_model": None, "base_n_layer": None, "base_d_head": None}
    return replace(config, parametrization=Parametrization.standard, **base, **changes)
