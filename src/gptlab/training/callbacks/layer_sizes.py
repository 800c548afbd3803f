"""Sizes of activations, gradients and weights by layer in training: `callbacks.inspect`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from gptlab.distributed.sharded_tensors import square_sums
from gptlab.models.base import LanguageModel
from gptlab.runs.folder import LAYERS_FILE, MetricsFile, RunFolder, cut_metrics, read_metrics
from gptlab.steps import Steps
from gptlab.training.step import micro_batches

ACTIVATION, GRADIENT, WEIGHT = "activation_rms", "gradient_norm", "weight_norm"  # how the names of columns begin


class LayerSizes(Callback):
    """Writes the rows of layers.csv, and changes nothing that is learned.

    Of a step it has the root mean square of each block's output for the first micro-batch, without dropout, and by
    layer the 2-norms of the gradients, before they are clipped, and of the weights, before they are updated. All are
    over all ranks. `earlier` is the metrics.csv of what is continued, beside which its layers.csv is.
    """

    def __init__(self, every_steps: int | None, folder: RunFolder, *, steps: Steps, n_steps: int, earlier: Path):
        self.every_steps = every_steps  # None: never
        self.folder = folder
        self.steps = steps
        self.n_steps = n_steps
        self.earlier = earlier.with_name(LAYERS_FILE)
        self.row: dict[str, float | int] = {}
        self._file: MetricsFile | None = None

    def is_due(self, step: int) -> bool:
        every = self.every_steps
        return every is not None and (step % every == 0 or step in (1, self.n_steps))

    def on_fit_start(self, trainer, module) -> None:
        """Drop the rows of steps that are trained again, also where nothing is recorded now."""
        path = self.folder.path / LAYERS_FILE
        if not self.folder.writes or not (self.every_steps or path.is_file() or self.earlier.is_file()):
            return
        recorded = {name: None for row in read_metrics(self.earlier) for name in row}
        columns = list(dict.fromkeys(["step", "tokens", *columns_of(module.model), *recorded]))
        cut_metrics(self.earlier, path, module.finished_steps or -1, columns)
        if self.every_steps:
            self._file = MetricsFile(path, columns)

    @torch.no_grad()
    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        step = module.finished_steps + 1
        self.row = {"step": step, "tokens": self.steps.tokens_before(step)} if self.is_due(step) else {}
        if not self.row:
            return
        first = micro_batches(batch, module.micro_batch_size)[0]
        modes = {part: part.training for part in module.model.modules()}
        module.model.eval()
        # A pass of its own: compiled blocks do not see hooks, and what is learned must not depend on being looked at.
        eager = torch.compiler.set_stance("force_eager")
        try:
            with isolate_rng(), eager, trainer.precision_plugin.forward_context(), block_outputs(module.model) as found:
                module.objective.loss(module.model, first)
        finally:
            for part, mode in modes.items():
                part.training = mode
        sums = torch.tensor([value for pair in found.values() for value in pair], dtype=torch.float64)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.float().to(module.device), reduce_op="sum").double()
        for name, (square, count) in zip(found, sums.view(-1, 2).tolist(), strict=True):
            self.row[f"{ACTIVATION}/{name}"] = (square / count) ** 0.5

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if not self.row:
            return
        layers = module.model.layers_of_parameters()
        parameters = dict(module.model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        squares = square_sums([*gradients.values(), *parameters.values()]).tolist()
        kinds = [GRADIENT] * len(gradients) + [WEIGHT] * len(parameters)
        sums: dict[str, float] = {}
        for kind, name, square in zip(kinds, [*gradients, *parameters], squares, strict=True):
            column = f"{kind}/{layers[name]}"
            sums[column] = sums.get(column, 0.0) + square
        self.row |= {column: value**0.5 for column, value in sums.items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self.row and self._file is not None:
            self._file.write(self.row)
            self._file.flush()
        self.row = {}

    def teardown(self, trainer, module, stage) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def columns_of(model: LanguageModel) -> list[str]:
    """The columns of layers.csv beside `step` and `tokens`."""
    layers = list(dict.fromkeys(model.layers_of_parameters().values()))
    columns = [f"{ACTIVATION}/{name}" for name in model.block_names]
    return [*columns, *(f"{kind}/{layer}" for kind in (GRADIENT, WEIGHT) for layer in layers)]


@contextmanager
def block_outputs(model: LanguageModel) -> Iterator[dict[str, tuple[float, int]]]:
    """The sum of squares and the number of values of each block's output in the forward passes within."""
    found: dict[str, tuple[float, int]] = {}

    def listen(name: str, block: nn.Module):
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else output[0]
            square, count = found.get(name, (0.0, 0))
            found[name] = (square + value.detach().float().square().sum().item(), count + value.numel())

        return block.register_forward_hook(hook)

    hooks = [listen(name, block) for name, block in zip(model.block_names, model.blocks, strict=True)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
