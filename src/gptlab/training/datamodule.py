"""Batches: which examples a device sees at a step, as a pure function of (seed, step)."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert

from gptlab.data.config import DataConfig, RunDataConfig
from gptlab.data.examples.packing import Packed, PackedDocuments, PackedExamples
from gptlab.data.examples.windows import SlidingWindows, parts_of_sequences
from gptlab.data.mixture.config import MixtureConfig, with_name
from gptlab.data.mixture.examples import MixedExamples, MixtureOrder
from gptlab.data.mixture.interleave import Interleave
from gptlab.data.mixture.prepare import PreparedMixture
from gptlab.data.order import ExampleOrder, ShardOrder
from gptlab.data.prepare import PreparedData
from gptlab.data.remote_shards import FetchedTokens, ReadAhead
from gptlab.data.sources.config import ShardsConfig
from gptlab.distributed.config import Layout
from gptlab.errors import UserError
from gptlab.objectives.base import Batch, Examples, Objective
from gptlab.steps import Steps
from gptlab.training.config import eval_batch_size

ORDER_SAMPLES = 4096  # whose order is computed at once


class Order(Protocol):
    """Which example is sample i."""

    def indices(self, samples: np.ndarray) -> np.ndarray: ...


class TrainBatches(Dataset):
    """Item s is this rank's batch for the step after s finished ones; steps that were skipped count as finished."""

    def __init__(
        self,
        examples: Examples,
        objective: Objective,
        order: Order,
        *,
        steps: Steps,
        rank: int,
        world_size: int,
        read_ahead: Mapping[int, ReadAhead] | None = None,  # of each corpus whose shards are fetched, by its number
    ):
        self.examples = examples
        self.objective = objective
        self.order = order
        self._read_ahead = dict(read_ahead or {})
        self.steps = steps
        self.rank = rank
        self.world_size = world_size
        self._block = (-1, -1)
        self._samples = self._indices = np.empty((0, 0), dtype=np.int64)  # (steps, this rank's examples)

    def __getitem__(self, step: int) -> Batch:
        # The order of many samples takes hardly longer to compute than that of a few.
        first_step, _, n_sequences = self.steps.phase(step)
        n_steps = max(1, ORDER_SAMPLES // n_sequences)
        number, within = divmod(step - first_step, n_steps)
        if (first_step, number) != self._block:
            first = self.steps.sequences_before(first_step + number * n_steps)
            self._samples = first + self._places(n_sequences, n_steps)
            self._indices = self.order.indices(self._samples)
            self._block = (first_step, number)
        if self._read_ahead:
            self._fetch(self._samples[within])
        examples, length = self.examples.gather(self._indices[within]), self.steps.length(step)
        if length < self.steps.context_length:
            examples = parts_of_sequences(examples, length)
        return self.objective.collate(examples, self._samples[within])

    def _fetch(self, samples: np.ndarray) -> None:
        if not isinstance(self.order, MixtureOrder):
            self._read_ahead[0].at(int(samples[0]))
            return
        sources, positions = self.order.interleave.locate(samples)
        for k, read_ahead in self._read_ahead.items():
            if (sources == k).any():
                read_ahead.at(int(positions[sources == k][0]))

    def samples(self, step: int) -> np.ndarray:
        """The numbers of this rank's samples (examples,) of a step."""
        return self.steps.sequences_before(step) + self._places(self.steps.n_sequences(step), 1)[0]

    def _places(self, n_sequences: int, n_steps: int) -> np.ndarray:
        """Where this rank's samples stand among those of so many steps of one size (steps, examples)."""
        per_rank = n_sequences // self.world_size
        return np.arange(n_steps)[:, None] * n_sequences + self.rank * per_rank + np.arange(per_rank)

    def sources(self, step: int) -> list[dict[str, Any]] | None:
        """Of a mixture the source of each example of a step, as `MixtureOrder.locate` gives it; else None."""
        if not isinstance(self.order, MixtureOrder):
            return None
        return self.order.locate(self.samples(step))


class RemainingSteps(Sampler):
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


def order_of(
    config: DataConfig, examples: Examples | None, *, seed: int, shuffle: bool
) -> tuple[ExampleOrder | ShardOrder, ReadAhead | None]:
    """The order of a corpus's training examples, None for none, and what fetches them where they are elsewhere."""
    n_examples = 0 if examples is None else min(len(examples), config.max_sequences or len(examples))
    window = config.window_shards if isinstance(config, ShardsConfig) and shuffle else None
    if window is None or examples is None:
        return ExampleOrder(seed, n_examples, shuffle), None
    tokens = examples.sharded if isinstance(examples, SlidingWindows) else None
    if tokens is None or not isinstance(examples, SlidingWindows):
        raise UserError(
            f"data.shuffle_shards={window} is for sequences, and objective.next_sentence=true makes segment pairs of "
            "whole documents; leave one out"
        )
    order = ShardOrder(
        seed=seed,
        n_examples=n_examples,
        shard_tokens=tokens.shard_tokens,
        stride=examples.stride,
        n_window=window,
    )
    return order, ReadAhead(tokens, order) if isinstance(tokens, FetchedTokens) else None


def contiguous(batch: Any) -> dict[str, Any]:
    """A batch as its copy to a GPU wants it: views with gaps would be copied by way of memory that is not pinned."""
    tensors = default_convert(batch)  # as a loader without a function of its own does
    return {name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in tensors.items()}


def is_of(split: str, name: str) -> bool:
    """Whether it is the split `name`, or that of one source of a mixture."""
    return split == name or split.startswith(f"{name}/")


def with_source(name: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """What a call about a corpus returns; its UserError names the source, where the corpus is one of a mixture."""
    return with_name(name, call, *arguments, **options) if name else call(*arguments, **options)


def _begin_worker(worker: int, *, run: int) -> None:
    # A signal to the whole group must not end the workers before the run has saved itself.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(run,), daemon=True).start()


def _end_with(run: int) -> None:
    # torch watches the process that it finds above the worker: where the run was killed before it looked, another one.
    while os.getppid() == run:
        time.sleep(1)
    os._exit(1)


class ExamplesDataModule(lightning.LightningDataModule):
    """The examples that objectives make of the prepared splits: one objective for each corpus, which knows its config.

    They learn alike: batches are collated by the first.
    """

    def __init__(
        self,
        data: PreparedData | PreparedMixture,
        objectives: Mapping[str, Objective],
        config: RunDataConfig,
        *,
        seed: int,
        steps: Steps,
        micro_batch_size: int | None = None,
        eval_train: bool = False,
        layout: Layout,
        n_steps: int,
    ):
        super().__init__()
        self.config = config
        self.seed = seed
        self.steps = steps
        self.eval_batch_size = eval_batch_size(steps.context_length, micro_batch_size)
        self.layout = layout
        self.objective = next(iter(objectives.values()))
        self.start_step = 0
        self.skipped_steps = 0  # so many steps' samples are left out before the first that remains
        self.n_steps = n_steps
        self._read_ahead: dict[int, ReadAhead] = {}
        self.train_examples, self.order = self._open_training(data, objectives)
        parts = {"val": "val", "test": "test"} | ({"train_eval": "train"} if eval_train else {})
        self.eval_examples: dict[str, Examples] = {}  # by split, of a mixture by split/source
        for split, part in parts.items():
            for name, corpus in data.corpora.items():
                if corpus.part(part) is not None:
                    examples = with_source(name, objectives[name].examples, corpus, part, evaluating=True)
                    self.eval_examples[f"{split}/{name}" if name else split] = examples

    def _open_training(
        self, data: PreparedData | PreparedMixture, objectives: Mapping[str, Objective]
    ) -> tuple[Examples, Order]:
        config = self.config
        if not isinstance(config, MixtureConfig):
            examples = self.objective.examples(data.corpora[""], "train", evaluating=False)
            order, read_ahead = order_of(config.first, examples, seed=self.seed, shuffle=config.shuffle)
            self._read_ahead = {} if read_ahead is None else {0: read_ahead}
            return examples, order
        interleave = Interleave(config.points(), self.steps.context_length)
        taken = [any(weights[k] for _, weights in interleave.points) for k in range(interleave.n_sources)]
        parts = [
            with_source(name, objectives[name].examples, corpus, "train", evaluating=False) if is_taken else None
            for (name, corpus), is_taken in zip(data.corpora.items(), taken, strict=True)
        ]
        examples = MixedExamples(parts)
        orders = []
        for k, ((name, corpus), part) in enumerate(zip(config.corpora.items(), parts, strict=True)):
            own, read_ahead = with_source(name, order_of, corpus, part, seed=self.seed, shuffle=config.shuffle)
            orders.append(own)
            if read_ahead is not None:
                self._read_ahead[k] = read_ahead
        order = MixtureOrder(
            names=tuple(data.corpora),
            interleave=interleave,
            orders=tuple(orders),
            offsets=tuple(examples.offsets[:-1].tolist()),
        )
        order.check_epochs(config.max_epochs, n_steps=self.n_steps, steps=self.steps)
        return examples, order

    @property
    def eval_splits(self) -> list[str]:
        """What each validation dataloader holds, in their order."""
        return [split for split in self.eval_examples if not is_of(split, "test")]

    @property
    def test_splits(self) -> list[str]:
        """The same of the test dataloaders."""
        return [split for split in self.eval_examples if is_of(split, "test")]

    @property
    def preview_examples(self) -> Examples:
        """The examples that a preview shows: of the first source that has validation, else of the training split."""
        return next((self.eval_examples[s] for s in self.eval_splits if is_of(s, "val")), self.train_examples)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source of a mixture in the whole run; empty for one corpus."""
        if not isinstance(self.order, MixtureOrder):
            return {}
        weights = self.order.interleave.weights(max(1, self.steps.sequences_before(self.n_steps)))
        return dict(zip(self.order.names, weights, strict=True))

    @property
    def packed(self) -> dict[str, Packed]:
        """What packing made of the training split of each corpus that is read; empty where nothing is packed."""
        parts = {"": self.train_examples}
        if isinstance(self.order, MixtureOrder) and isinstance(self.train_examples, MixedExamples):
            parts = dict(zip(self.order.names, self.train_examples.parts, strict=True))
        return {name: part.packed for name, part in parts.items() if isinstance(part, PackedDocuments | PackedExamples)}

    def epochs(self, n_steps: int) -> dict[str, float]:
        """How often the samples of the first steps, skipped ones among them, read each source of a mixture."""
        if not isinstance(self.order, MixtureOrder):
            return {}
        return self.order.epochs(self.steps.sequences_before(n_steps))

    @property
    def _rank(self) -> int:
        assert self.trainer is not None
        return self.trainer.global_rank

    def train_batches(self, rank: int) -> TrainBatches:
        """What a rank trains on, by step."""
        return TrainBatches(
            self.train_examples,
            self.objective,
            self.order,
            steps=self.steps,
            rank=self.layout.data_rank(rank),
            world_size=self.layout.data,
            read_ahead=self._read_ahead,
        )

    def train_dataloader(self) -> DataLoader:
        batches = self.train_batches(self._rank)
        return self._loader(
            batches, RemainingSteps(self.start_step + self.skipped_steps, self.n_steps + self.skipped_steps)
        )

    def val_dataloader(self) -> list[DataLoader]:
        return [self._eval_loader(split) for split in self.eval_splits]

    def test_dataloader(self) -> list[DataLoader]:
        return [self._eval_loader(split) for split in self.test_splits]

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
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"  # a run on the CPU of such a machine touches none
        return DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=partial(_begin_worker, run=os.getpid()),
            # A fork of a process with running threads can hang; and workers need torch alone.
            multiprocessing_context="spawn" if workers else None,
            pin_memory=on_gpu,
            collate_fn=contiguous if on_gpu else None,
            # Without one of its own the loader draws from the global generator, which is the model's.
            generator=torch.Generator().manual_seed(self.seed),
        )
