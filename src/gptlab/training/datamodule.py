"""Batches: which examples a device sees at a step, as a pure function of (seed, step)."""

import signal
from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gptlab.data.config import DataConfig
from gptlab.data.order import example_index
from gptlab.data.prepare import PreparedData
from gptlab.distributed.config import Layout
from gptlab.objectives.base import Batch, Examples, Objective
from gptlab.training.config import eval_batch_size

ORDER_SAMPLES = 4096  # whose order is computed at once


class TrainBatches(Dataset):
    """Item s is this rank's batch for the step after s finished ones; steps that were skipped count as finished."""

    def __init__(
        self,
        examples: Examples,
        objective: Objective,
        *,
        seed: int,
        shuffle: bool,
        per_step: int,
        rank: int,
        world_size: int,
        max_examples: int | None = None,
    ):
        self.examples = examples
        self.objective = objective
        self.seed = seed
        self.shuffle = shuffle
        self.per_step = per_step
        self.rank = rank
        self.world_size = world_size
        self.n_examples = min(len(examples), max_examples or len(examples))
        self._block = -1
        self._samples = self._indices = np.empty((0, 0), dtype=np.int64)  # (steps, this rank's examples)

    def __getitem__(self, step: int) -> Batch:
        # The order of many samples takes hardly longer to compute than that of a few.
        n_steps = max(1, ORDER_SAMPLES // self.per_step)
        block, within = divmod(step, n_steps)
        if block != self._block:
            per_rank = self.per_step // self.world_size
            steps = np.arange(block * n_steps, (block + 1) * n_steps)[:, None]
            self._samples = steps * self.per_step + self.rank * per_rank + np.arange(per_rank)
            self._indices = example_index(self.seed, self._samples, self.n_examples, self.shuffle)
            self._block = block
        return self.objective.collate(self.examples.gather(self._indices[within]), self._samples[within])


class Steps(Sampler):
    """The steps that remain."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end - self.start


class EvalBatches(Dataset):
    """A whole split in order; batches go to the ranks in turn."""

    def __init__(self, examples: Examples, objective: Objective, *, per_batch: int, rank: int, world_size: int):
        self.examples = examples
        self.objective = objective
        self.per_batch = per_batch
        self.rank = rank
        self.world_size = world_size
        self.n_full = -(-len(examples) // per_batch)
        self.has_tail = examples.tail() is not None

    def __len__(self) -> int:
        return -(-(self.n_full + self.has_tail) // self.world_size)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """A batch, and under "counts" whether it counts."""
        batch = i * self.world_size + self.rank
        if batch >= self.n_full + self.has_tail:
            # Every rank takes part in every collective: one without work left repeats a batch that does not count.
            return self._collate(0, 1) | {"counts": False}
        if batch == self.n_full:
            tail = self.objective.collate(self.examples.tail(), np.array([-1 - len(self.examples)]))
            return tail | {"counts": True}
        first = batch * self.per_batch
        return self._collate(first, min(first + self.per_batch, len(self.examples))) | {"counts": True}

    def _collate(self, first: int, end: int) -> Batch:
        indices = np.arange(first, end)
        return self.objective.collate(self.examples.gather(indices), -1 - indices)


def _leave_signals_to_the_run(worker: int) -> None:
    # A signal to the whole group must not end the workers before the run has saved itself.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class ExamplesDataModule(lightning.LightningDataModule):
    """The examples that an objective makes of the prepared splits."""

    def __init__(
        self,
        data: PreparedData,
        objective: Objective,
        config: DataConfig,
        *,
        seed: int,
        sequences_per_step: int,
        context_length: int,
        micro_batch_size: int | None = None,
        eval_train: bool = False,
        layout: Layout,
        n_steps: int,
    ):
        super().__init__()
        self.config = config
        self.seed = seed
        self.sequences_per_step = sequences_per_step
        self.eval_batch_size = eval_batch_size(context_length, micro_batch_size)
        self.layout = layout
        self.objective = objective
        self.start_step = 0
        self.skipped_steps = 0  # so many steps' samples are left out before the first that remains
        self.n_steps = n_steps
        self.train_examples = objective.examples(data, "train", evaluating=False)
        parts = {"val": "val", "test": "test"} | ({"train_eval": "train"} if eval_train else {})
        self.eval_examples = {
            split: objective.examples(data, part, evaluating=True)
            for split, part in parts.items()
            if data.part(part) is not None
        }

    @property
    def eval_splits(self) -> list[str]:
        """What each validation dataloader holds, in their order."""
        return [split for split in self.eval_examples if split != "test"]

    @property
    def _rank(self) -> int:
        assert self.trainer is not None
        return self.trainer.global_rank

    def train_batches(self, rank: int) -> TrainBatches:
        """What a rank trains on, by step."""
        return TrainBatches(
            self.train_examples,
            self.objective,
            seed=self.seed,
            shuffle=self.config.shuffle,
            per_step=self.sequences_per_step,
            rank=self.layout.data_rank(rank),
            world_size=self.layout.data,
            max_examples=self.config.max_sequences,
        )

    def train_dataloader(self) -> DataLoader:
        batches = self.train_batches(self._rank)
        return self._loader(batches, Steps(self.start_step + self.skipped_steps, self.n_steps + self.skipped_steps))

    def val_dataloader(self) -> list[DataLoader]:
        return [self._eval_loader(split) for split in self.eval_splits]

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        if device.type == "cpu":
            return batch
        return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _eval_loader(self, split: str) -> DataLoader:
        batches = EvalBatches(
            self.eval_examples[split],
            self.objective,
            per_batch=self.eval_batch_size,
            rank=self.layout.data_rank(self._rank),
            world_size=self.layout.data,
        )
        return self._loader(batches, range(len(batches)))

    def _loader(self, batches: Dataset, sampler) -> DataLoader:
        workers = self.config.n_workers
        return DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_run,
            # A fork of a process with running threads can hang; and workers need torch alone.
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
            # Without one of its own the loader draws from the global generator, which is the model's.
            generator=torch.Generator().manual_seed(self.seed),
        )
