"""What every network offers to training, generation and the tools around them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.config import Capability, Kind, ModelConfig, Parametrization, Role
from gptlab.nn.cache import KVCache
from gptlab.nn.lora import ADAPTERS
from gptlab.nn.loss import Auxiliary, LMHead
from gptlab.nn.tensor_parallel import TensorParallelPlan

CLASS_HEAD = "class_head."  # how the names of its parameters begin


class LanguageModel(nn.Module, ABC):
    """A network that turns tokens into hidden states, and a head that turns these into logits.

    A subclass sets `blocks` in its constructor, or defines it as a property: all blocks in the order in which they run.
    They are the units of activation checkpointing, compilation and sharding, so most parameters should be in them. It
    defines `hidden_states` and `head`, which is enough to train and to generate; the other methods have defaults. An
    untied head is named `lm_head`, so that objectives which score no tokens leave it untrained.

    Its `config.capabilities` promise more: `bidirectional` that `hidden_states` takes `segments`; `encoder_decoder`
    that it takes `source` and `source_mask`, that `encode` is defined and that `config` has `decoder_start_token_id`;
    `document_ids` that `hidden_states` takes these: integers (B, T), equal within a document, to which attention is
    then confined and in which positions begin at 0; `mlm_head`, `pooler` and `nsp_head` that `mlm_transform`, `pooled`
    and `next_sentence` are defined.
    """

    blocks: Sequence[nn.Module] | nn.ModuleList

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.class_head: ClassHead | None = None
        self.end_ids: frozenset[int] | None = None  # the tokens that end its texts; None: the end-of-text token

    @abstractmethod
    def hidden_states(self, tokens: Tensor, *, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """What the head reads: tokens (B, T) -> (B, T, D).

        attention_mask (B, T) is True on real tokens and False on padding, which is at the end (None: no padding). The
        result at padding is arbitrary. If `new_cache` returns a cache, there is an argument `cache` too: the tokens
        then continue what the cache holds and are added to it.
        """

    @property
    @abstractmethod
    def head(self) -> LMHead:
        """The output head as values: `nn.loss.linear_cross_entropy` never forms all logits."""

    def forward(self, tokens: Tensor, **inputs: Any) -> Tensor:
        """Logits: tokens (B, T) and what `hidden_states` takes beside -> (B, T, V)."""
        return self.head.logits(self.hidden_states(tokens, **inputs))

    @property
    def auxiliary(self) -> Auxiliary | None:
        """What the newest forward pass adds to any objective; None in evaluation, and where there is nothing.

        The names of its terms are `config.auxiliary_terms`.
        """
        return None

    def mlm_transform(self, hidden_states: Tensor) -> Tensor:
        """What `head` reads, of a masked language model: the hidden states of masked positions (..., D) -> (..., D)."""
        raise NotImplementedError(f"{type(self).__name__} promises no {Capability.mlm_head}")

    def pooled(self, hidden_states: Tensor) -> Tensor:
        """One state for each sequence: (B, T, D) -> (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} promises no {Capability.pooler}")

    def next_sentence(self, pooled: Tensor) -> Tensor:
        """Logits of 0, the second segment follows the first, and 1, it does not: pooled (B, D) -> (B, 2)."""
        raise NotImplementedError(f"{type(self).__name__} promises no {Capability.nsp_head}")

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Any:
        """The source tokens (B, S) as `hidden_states` takes them for `source`, for any number of calls.

        mask (B, S) is True on real tokens (None: no padding). `select(indices)` of the result keeps some of the texts.
        """
        raise NotImplementedError(f"{type(self).__name__} promises no {Capability.encoder_decoder}")

    def new_cache(self, batch_size: int, n_positions: int) -> KVCache | None:
        """An empty cache for `hidden_states`; None where there is no such thing, and generation recomputes."""
        return None

    def init_parameter(self, name: str, value: Tensor, module: nn.Module, generator: torch.Generator) -> None:
        """Fill `value` with the initial value of parameter `name` of `module`, drawing from `generator` alone.

        By default zeros for biases, ones for the weights of norms, and for matrices a normal distribution with standard
        deviation 0.02 in a model of the base width.
        """
        if name.endswith("bias"):
            value.zero_()
        elif value.ndim > 1:
            value.normal_(std=0.02 * self.init_ratio(name, module), generator=generator)
        else:
            value.fill_(1.0 if name.endswith("weight") else 0.0)

    def role_of(self, name: str, module: nn.Module) -> Role:
        """What parameter `name` of `module` is, as `config.parametrization` asks."""
        residual = ".blocks." in f".{name}"
        if name.endswith(ADAPTERS):  # the rates of LoRA+ (arXiv:2402.12354, section 4)
            return Role(Kind.output if name.endswith(".lora_down") else Kind.input, residual)
        if name.startswith(CLASS_HEAD):
            return Role(Kind.vector if name.endswith("bias") else Kind.output, residual=False)
        return self._role_of(name, module)

    def _role_of(self, name: str, module: nn.Module) -> Role:
        raise UserError(
            f"model.parametrization={self.config.parametrization.value}: the model of model.type={self.config.type} "
            f"does not say what its parameter {name} is; define _role_of, or use model.parametrization=standard"
        )

    def init_ratio(self, name: str, module: nn.Module) -> float:
        """By what the standard deviation of the base model's initial values is multiplied."""
        width = self.config.width_ratio
        if width == 1.0:
            return 1.0
        return {Kind.hidden: width**-0.5, Kind.output: 1 / width}.get(self.role_of(name, module).kind, 1.0)

    @property
    def logit_scale(self) -> float:
        """What a head over the vocabulary multiplies its logits by, tied or not, beside what it always does."""
        return 1 / self.config.width_ratio

    def as_standard(self) -> tuple[ModelConfig, dict[str, float]]:
        """A config with parametrization=standard, and the factors of parameters by name that make it compute the same.

        UserError where no factors do.
        """
        if self.config.parametrization is Parametrization.standard:
            return self.config, {}
        raise UserError(
            f"model.parametrization={self.config.parametrization.value}: the model of model.type={self.config.type} "
            "does not say how its multipliers become part of its weights; train with model.parametrization=standard, "
            "or use it with gptlab alone"
        )

    @property
    def block_names(self) -> list[str]:
        """The names of the blocks in the model, in the order in which they run."""
        names = {id(module): name for name, module in self.named_modules()}
        return [names[id(block)] for block in self.blocks]

    def layers_of_parameters(self) -> dict[str, str]:
        """The layer of each parameter, by its name: the block that it is in, or else its module."""
        blocks = [f"{name}." for name in self.block_names]
        return {
            name: next((block[:-1] for block in blocks if name.startswith(block)), name.rpartition(".")[0] or name)
            for name, _ in self.named_parameters()
        }

    @property
    def output_blocks(self) -> Sequence[nn.Module] | nn.ModuleList:
        """The blocks that lead to the head, of which finetune=last_layers trains the last ones."""
        return self.blocks

    @property
    def output_modules(self) -> Sequence[nn.Module]:
        """What reads the last block's output, except a head tied to the embedding; trained by finetune=last_layers."""
        raise UserError(
            f"finetune=last_layers needs to know what follows the last block, and the model of "
            f"model.type={self.config.type} does not define output_modules; use finetune=full or lora"
        )

    def linear_layers(self, block: nn.Module) -> Mapping[str, nn.Linear]:
        """The linear layers of a block by name, to which finetune=lora can add adapters."""
        return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}

    def tensor_parallel_plan(self, block: nn.Module) -> TensorParallelPlan:
        """How a block is sharded over a tensor-parallel group; `config.tensor_parallel_dims` names the sizes.

        A block returns the same on all ranks of a group.
        """
        raise UserError(
            f"tensor parallelism is not supported by a model of model.type={self.config.type}; use strategy=fsdp"
        )

    def part_of(self, name: str) -> str:
        """The part to which a parameter is counted, as "embedding" or "attention"."""
        if name.endswith(ADAPTERS):
            return "adapter"
        if name.startswith(CLASS_HEAD):
            return "classes"
        return self._part_of(name)

    def _part_of(self, name: str) -> str:
        return name.split(".")[0]

    def add_class_head(self, n_class: int) -> None:
        """Add a head for `n_class` classes."""
        self.class_head = ClassHead(self.config.d_model, n_class, dropout=self.config.dropout)


class ClassHead(nn.Linear):
    """Class logits from one hidden state per text: (B, D) -> (B, C)."""

    def __init__(self, d_model: int, n_class: int, *, dropout: float):
        super().__init__(d_model, n_class)
        self.drop = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(self.drop(pooled))
