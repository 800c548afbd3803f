"""Batches: which windows a device sees at a step, as a pure function of (seed, step)."""

import signal
from collections.abc import Iterator

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gptlab.config import RunConfig
from gptlab.data.order import window_index
from gptlab.data.prepare import PreparedData
from gptlab.data.windows import SlidingWindows
from gptlab.training.config import Layout

ORDER_SAMPLES = 4096  # whose order is worked out at once
EVAL_TOKENS = 16_384  # of one forward pass without gradients


class TrainBatches(Dataset):
    """Item s is what this rank trains on in optimiser step s, or later by the steps whose samples were left out."""

    def __init__(self, windows, objective, *, seed, shuffle, per_step, rank, world_size, max_windows=None):
        self.windows = windows
        self.objective = objective
        self.seed = seed
        self.shuffle = shuffle
        self.per_step = per_step
        self.rank = rank
        self.world_size = world_size
        self.n_windows = min(len(windows), max_windows or len(windows))
        self._block = -1
        self._block_windows = np.empty((0, 0), dtype=np.int64)  # (steps, this rank's windows)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return self.objective.collate(self.windows.gather(self._windows_of(step)))

    def _windows_of(self, step: int) -> np.ndarray:
        # The order of many samples takes hardly longer to work out than that of a few.
        n_steps = max(1, ORDER_SAMPLES // self.per_step)
        block, row = divmod(step, n_steps)
        if block != self._block:
            share = self.per_step // self.world_size
            steps = np.arange(block * n_steps, (block + 1) * n_steps)[:, None]
            samples = steps * self.per_step + self.rank * share + np.arange(share)
            self._block_windows = window_index(self.seed, samples, self.n_windows, self.shuffle)
            self._block = block
        return self._block_windows[row]


class Steps(Sampler):
    """The items that remain, one a step."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end - self.start


class EvalBatches(Dataset):
    """A whole split in order, every token but the first predicted once, dealt to the ranks in turn."""

    def __init__(self, windows, objective, *, per_batch, rank, world_size):
        self.windows = windows
        self.objective = objective
        self.per_batch = per_batch
        self.rank = rank
        self.world_size = world_size
        self.n_full = -(-len(windows) // per_batch)
        self.has_tail = windows.tail() is not None

    def __len__(self) -> int:
        return -(-(self.n_full + self.has_tail) // self.world_size)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        batch = i * self.world_size + self.rank
        if batch >= self.n_full + self.has_tail:
            # Every rank takes part in every collective: one without work left repeats a batch that does not count.
            return self.objective.collate(self.windows.gather(np.arange(1))) | {"counts": False}
        if batch == self.n_full:
            return self.objective.collate(self.windows.tail()) | {"counts": True}
        first = batch * self.per_batch
        index = np.arange(first, min(first + self.per_batch, len(self.windows)))
        return self.objective.collate(self.windows.gather(index)) | {"counts": True}


def _every_token_once(tokens: np.ndarray, context_length: int) -> SlidingWindows:
    """Windows for evaluation, whatever the stride of training is; a split may be shorter than one."""
    length = min(context_length, max(1, len(tokens) - 1))
    return SlidingWindows(tokens, length, length)


def _leave_signals_to_the_run(worker: int) -> None:
    # A signal to the whole group must not end the workers before the run has saved itself.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class WindowsDataModule(lightning.LightningDataModule):
    """Sliding windows over the prepared token files."""

    def __init__(self, config: RunConfig, data: PreparedData, objective, *, layout: Layout, n_steps: int):
        super().__init__()
        self.config = config
        self.layout = layout
        self.objective = objective
        self.start_step = 0
        self.skipped_steps = 0  # so many steps' samples are left out before the first that remains
        self.n_steps = n_steps
        length, stride = config.context_length, config.data.stride or config.context_length
        self.train_windows = SlidingWindows(data.train.tokens, length, stride)
        evaluated = {"val": data.val, "test": data.test, "train_eval": data.train if config.eval_train else None}
        self.eval_windows = {
            split: _every_token_once(file.tokens, length) for split, file in evaluated.items() if file is not None
        }

    @property
    def eval_splits(self) -> list[str]:
        """What each validation dataloader holds, in their order."""
        return [split for split in self.eval_windows if split != "test"]

    def train_dataloader(self) -> DataLoader:
        config = self.config
        batches = TrainBatches(
            self.train_windows,
            self.objective,
            seed=config.seed,
            shuffle=config.data.shuffle,
            per_step=config.windows_per_step,
            rank=self.layout.data_rank(self.trainer.global_rank),
            world_size=self.layout.data,
            max_windows=config.data.max_windows,
        )
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
        config = self.config
        batches = EvalBatches(
            self.eval_windows[split],
            self.objective,
            per_batch=max(config.micro_batch_size or 1, EVAL_TOKENS // config.context_length, 1),
            rank=self.layout.data_rank(self.trainer.global_rank),
            world_size=self.layout.data,
        )
        return self._loader(batches, range(len(batches)))

    def _loader(self, batches: Dataset, sampler) -> DataLoader:
        workers = self.config.data.n_workers
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
            generator=torch.Generator().manual_seed(self.config.seed),
        )
