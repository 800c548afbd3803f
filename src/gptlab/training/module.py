"""The LightningModule: builds the sharded model, steps the optimizer and evaluates; the objective has the maths."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import lightning
import torch

from gptlab.distributed.config import Layout, Sharding, StrategyConfig
from gptlab.distributed.float8 import use_float8
from gptlab.distributed.parallelize import build_mesh, most_of_all_ranks, parallelize, synchronize_gradients
from gptlab.distributed.sharded_tensors import clip, fill, global_norm
from gptlab.distributed.signals import Interrupted
from gptlab.distributed.zero1 import OptimizerShards
from gptlab.models.build import initial_values, shape_model
from gptlab.models.config import ModelConfig
from gptlab.objectives.base import Batch, Objective, logged_means, training_counts
from gptlab.runs.initial_weights import load_initial
from gptlab.training.config import FinetuneConfig, OptimizerConfig, eval_micro_batch_size
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.optimizers import build_optimizer
from gptlab.training.schedule import Schedule
from gptlab.training.spikes import SpikeDetector
from gptlab.training.step import gradients_of, loss_and_gradients, micro_batches, reseed, set_lr, target_scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a run trains: an architecture, its vocabulary and heads, and which parameters are trained."""

    model: ModelConfig
    finetune: FinetuneConfig
    vocab_size: int
    n_class: int | None  # None: no class head


Result = TypeVar("Result")


class Evaluated(NamedTuple):
    """What the evaluation of a split found: the mean of each term, the targets of each kind, and the text's bytes."""

    means: dict[str, float]
    counts: dict[str, float]
    n_bytes: float


def mixed(sources: Mapping[str, Evaluated], shares: Mapping[str, float]) -> Evaluated:
    """The evaluation of a mixture: the means of its sources, each times the source's share in the run.

    Bytes are those of a target of the mixture. Sources without a share do not count, unless none has one.
    """
    total = sum(shares.get(name, 0.0) for name in sources)
    weights = {name: shares.get(name, 0.0) / total if total else 1 / len(sources) for name in sources}
    counted = {name: weight for name, weight in weights.items() if weight}
    first = next(iter(sources.values()))
    means = {term: sum(w * sources[name].means[term] for name, w in counted.items()) for term in first.means}
    n_targets = {name: max(1.0, next(iter(sources[name].counts.values()))) for name in counted}
    n_bytes = sum(w * sources[name].n_bytes / n_targets[name] for name, w in counted.items())
    return Evaluated(means, dict.fromkeys(first.counts, 1.0), n_bytes)


def metric_name(split: str, name: str, *, whole: bool) -> str:
    """The column of a measure of a split, or of a part of it: `val/loss`, `val/SOURCE/loss`, `val_part/SOURCE/loss`."""
    part, slash, source = split.partition("/")
    return f"{part if whole else f'{part}_part'}{slash}{source}/{name}"


class LanguageModule(lightning.LightningModule):
    """One training batch is one optimizer step: it holds every micro-batch of this rank."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        *,
        strategy: StrategyConfig,
        layout: Layout,
        recomputed: Sequence[int] | None = None,
        seed: int,
        micro_batch_size: int | None,
        n_bytes: dict[str, int],
        shares: Mapping[str, float] | None = None,
        whole_val: bool = True,
        whole_test: bool = True,
        float8: bool = False,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.objective = objective
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.strategy_config = strategy
        self.layout = layout
        self.recomputed = recomputed  # blocks whose activations are checkpointed, as `parallelize` takes them
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.n_bytes = n_bytes  # of text, by split
        self.shares = shares or {}  # of the sources of a mixture in the run
        self.whole_val, self.whole_test = whole_val, whole_test  # whether evaluations read the whole split
        self.float8 = float8  # whether the linear layers of blocks compute in float8
        self.model: Any = None
        self.finished_steps = 0
        self.skipped_steps = 0  # whose samples were left out
        self.spikes: SpikeDetector | None = None  # decides about updates, where spikes are skipped
        self.updating = False  # inside an update weights and optimizer state do not fit together
        self.interruptible = False  # inside a forward or backward pass, where a signal may raise Interrupted
        self.before_micro_batch: list[
            Callable[[int, int], None]
        ] = []  # called with its index in the step, and of how many
        self.stop: Callable[[int], None] = lambda signum: None  # save and leave, after a signal inside a step
        self.last_step: dict[str, Any] = {}  # what the newest step measured: tensors, not yet read
        self.evaluation: dict[str, float] = {}  # the newest
        self._sums: dict[str, torch.Tensor] = {}
        self._optimizer_shards: OptimizerShards | None = None
        self._model_parameters: list[torch.nn.Parameter] = []  # to walk over the modules takes 0.1 ms

    def configure_model(self) -> None:
        if self.model is not None:
            return
        network, strategy = self.network, self.strategy_config
        # First the shapes alone, so that no device has to hold what will be sharded.
        model = shape_model(network.model, network.vocab_size, network.n_class)
        prepare_finetuning(model, network.finetune)
        for name, parameter in model.named_parameters():
            if name.startswith(self.objective.unused_parameters):
                parameter.requires_grad_(False)
        mesh, device = None, torch.device("cpu")
        if strategy.shards_model:
            device = self.trainer.strategy.root_device
            mesh = build_mesh(self.layout, device.type)
        if self.float8:
            use_float8(model, emulate=self.trainer.strategy.root_device.type == "cpu")
        self.recomputed = most_of_all_ranks(self.recomputed)
        parallelize(model, strategy, mesh, precision=self.trainer.precision, recomputed=self.recomputed)
        model.to_empty(device="cpu" if strategy.cpu_offload else device)
        if self.finished_steps:  # the values are a checkpoint's
            pass
        elif network.model.init_from is not None:
            load_initial(model, network.model, network.vocab_size, seed=self.seed)
        else:
            for _, parameter, value in initial_values(model, self.seed):
                fill(parameter, value)
        self.model = model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = None
        if self.strategy_config.type is Sharding.zero1:
            self._optimizer_shards = OptimizerShards(self.model, build_mesh(self.layout, self.device.type))
            parameters = self._optimizer_shards.named_parameters()
        return build_optimizer(self.model, self.optimizer_config, device=self.device, parameters=parameters)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step, world_size = self.finished_steps, self.trainer.world_size
        # Ranks that see the same sequences draw alike, attention's masks for their different heads too.
        reseed(self.seed, step, self.layout.data_rank(self.trainer.global_rank), self.device)
        optimizer: Any = self.optimizers()
        synchronize = partial(synchronize_gradients, self.trainer.strategy.model, self.model)
        scales, count = target_scales(self._step_counts(batch), self.layout.data), self._n_micro_batches(batch)
        indices = iter(range(count))

        def before_micro_batch(last: bool) -> None:
            index = next(indices)
            for call in self.before_micro_batch:
                call(index, count)
            if world_size > 1:
                synchronize(last)

        passes = partial(
            loss_and_gradients,
            self.model,
            self.objective,
            batch,
            micro_batch_size=self.micro_batch_size,
            scales=scales,
            backward=self.manual_backward,
            before_micro_batch=before_micro_batch,
        )
        terms = self.interruptibly(passes)
        set_lr(optimizer, self.schedule.factor(step))
        self.last_step |= {
            "terms": terms,  # the mean over ranks is the loss
            "lr": optimizer.param_groups[0]["initial_lr"] * self.schedule.factor(step),  # of the base model
        }
        self.updating = True
        if self._optimizer_shards is None:
            optimizer.step()
        else:
            self._optimizer_shards.take_gradients()
            optimizer.step()
            self._optimizer_shards.gather()
        self.updating = False
        if not self._model_parameters:
            self._model_parameters = list(self.model.parameters())
        for parameter in self._model_parameters:
            parameter.grad = None
        self.finished_steps += 1

    def interruptibly(self, passes: Callable[[], Result]) -> Result:
        """What the passes return, which change no weights, so that a signal may end them.

        No context manager: a signal may come as well in its own functions, which nothing would catch it in.
        """
        try:
            self.interruptible = True
            result = passes()
            self.interruptible = False
            return result
        except Interrupted as interrupted:
            signum = interrupted.signum
            traceback.clear_frames(interrupted.__traceback__)  # they hold the activations
        finally:
            self.interruptible = False
        self.stop(signum)
        raise Interrupted(signum)  # nobody stops the run

    def _n_micro_batches(self, batch: Batch) -> int:
        n_examples = next(iter(batch.values())).shape[0]
        return -(-n_examples // (self.micro_batch_size or n_examples))

    def _step_counts(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        """The targets of each kind in the whole step, over all ranks."""
        counts = training_counts(self.objective, batch)
        if self.trainer.world_size == 1:
            return counts
        values = torch.stack([self._on_device(count) for count in counts.values()])
        return dict(zip(counts, self._sum(values), strict=True))

    def _on_device(self, value: int | torch.Tensor) -> torch.Tensor:
        """A number as a tensor; a fill does not wait for a GPU, as a copy of a number would."""
        if isinstance(value, torch.Tensor):
            return value.to(self.device)
        return torch.full((), value, device=self.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are complete, and unscaled under 16-mixed.
        gradients = gradients_of(optimizer)
        norm = global_norm(gradients).to(self.device)
        if self.spikes is not None:
            self._skip_spike(self.spikes, optimizer, norm)
        if self.optimizer_config.grad_clip is not None:
            clip(gradients, self.optimizer_config.grad_clip, norm)
        self.last_step["grad_norm"] = norm
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self.last_step["loss_scale"] = scaler.get_scale()

    def _skip_spike(self, spikes: SpikeDetector, optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
        """Where the step is a spike, drop its gradients: without them there is no update."""
        loss = next(iter(self.last_step["terms"].values())).float().clone()  # reduced in place
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        if spikes.finds(loss.item(), norm.item()):
            self.last_step["skipped"] = {"usual": spikes.usual(), "in_a_row": spikes.in_a_row}
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]: set where no checker sees it
        self.interruptibly(partial(self._add, datamodule.eval_splits[dataloader_idx], batch))

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]: set where no checker sees it
        self.interruptibly(partial(self._add, datamodule.test_splits[dataloader_idx], batch))

    def on_validation_epoch_end(self) -> None:
        self.evaluation = self._means(whole=self.whole_val)
        # Other people's callbacks (EarlyStopping) look for values here.
        self.log_dict(self.evaluation, logger=False)

    def on_test_epoch_end(self) -> None:
        self.evaluation = self._means(whole=self.whole_test)

    def _add(self, split: str, batch: dict[str, Any]) -> None:
        does_count = batch["counts"]
        for part in self._eval_micro_batches({name: value for name, value in batch.items() if name != "counts"}):
            counts = self.objective.counts(part)
            terms = {name: term for name, term in self.objective.loss(self.model, part).items() if term.logged}
            values = [*(term.sum for term in terms.values()), *counts.values()]
            sums = torch.stack([self._on_device(value).double() for value in values])
            if not does_count:  # it only keeps this rank in step with the others, who may have all the batches
                sums = torch.zeros_like(sums)
            self._sums[split] = self._sums[split] + sums if split in self._sums else sums
            self._summed = terms, list(counts)

    def _eval_micro_batches(self, batch: Batch) -> list[Batch]:
        """A batch of an evaluation in the parts that are scored at once."""
        n_tokens = next(iter(batch.values()))[0].numel()  # of a sequence
        alone_on_cpu = self.device.type == "cpu" and self.trainer.world_size == 1
        size = eval_micro_batch_size(max(1, n_tokens), self.micro_batch_size, alone_on_cpu=alone_on_cpu)
        return micro_batches(batch, size if alone_on_cpu else None)

    def _means(self, *, whole: bool) -> dict[str, float]:
        """Means over the targets of all ranks, and of a mixture over its sources."""
        metrics: dict[str, float] = {}
        of_sources: dict[str, dict[str, Evaluated]] = {}
        for split in list(self._sums):
            sums = self._sums.pop(split)
            if self.trainer.world_size > 1:
                sums = self._sum(sums)
            terms, kinds = self._summed
            counts = dict(zip(kinds, sums[len(terms) :].tolist(), strict=True))
            terms = {name: term._replace(sum=value) for (name, term), value in zip(terms.items(), sums, strict=False)}
            means = logged_means(terms, {kind: 1 / count if count else math.nan for kind, count in counts.items()})
            found = Evaluated({name: value.item() for name, value in means.items()}, counts, self.n_bytes[split])
            metrics |= self._named(split, found, whole=whole)
            part, _, source = split.partition("/")
            if source:
                of_sources.setdefault(part, {})[source] = found
        for part, sources in of_sources.items():  # before those of its sources
            metrics = self._named(part, mixed(sources, self.shares), whole=whole) | metrics
        return metrics

    def _named(self, split: str, found: "Evaluated", *, whole: bool) -> dict[str, float]:
        n_bytes = found.n_bytes if whole else None
        measured = self.objective.metrics(found.means, found.counts, n_bytes=n_bytes)
        return {metric_name(split, name, whole=whole): value for name, value in measured.items()}

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all examples: ranks that see the same ones count once."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") / self.layout.tensor
