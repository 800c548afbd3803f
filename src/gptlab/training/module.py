"""The LightningModule: asks the objective for its terms, steps the optimizer, hands the numbers on."""

import math

import lightning
import torch

from gptlab.config import RunConfig
from gptlab.distributed.config import Layout, Sharding
from gptlab.distributed.parallelize import build_mesh, parallelize, synchronize_gradients
from gptlab.distributed.sharded_tensors import clip, fill, global_norm
from gptlab.distributed.zero1 import OptimizerShards
from gptlab.models.build import initial_values, shape_model
from gptlab.objectives.base import Batch, Objective, logged_means, total, training_counts, training_terms
from gptlab.runs.initial_weights import load_initial
from gptlab.training.config import is_whole
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.schedule import Schedule
from gptlab.training.spikes import SpikeDetector


class LanguageModule(lightning.LightningModule):
    """One training batch is one optimizer step: it holds every micro-batch of this rank."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        schedule: Schedule,
        *,
        layout: Layout,
        vocab_size: int,
        n_bytes: dict[str, int],
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.objective = objective
        self.schedule = schedule
        self.layout = layout
        self.vocab_size = vocab_size
        self.n_bytes = n_bytes  # of text, per split
        self.model = None
        self.finished_steps = 0
        self.skipped_steps = 0  # whose samples the run has left out
        self.spikes: SpikeDetector | None = None  # which decides about updates, where spikes are skipped
        self.updating = False  # inside an update weights and optimizer state do not fit together
        self.last_step = {}  # what the newest step measured: tensors, not yet read
        self._sums: dict[str, torch.Tensor] = {}
        self._optimizer_shards: OptimizerShards | None = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        config = self.config
        # First the shapes alone, so that no device has to hold what will be divided.
        model = shape_model(config.model, self.vocab_size, config.n_class)
        prepare_finetuning(model, config.finetune)
        for name, parameter in model.named_parameters():
            if name.startswith(self.objective.unused_parameters):
                parameter.requires_grad_(False)
        mesh, device = None, torch.device("cpu")
        if config.strategy.shards_model:
            device = self.trainer.strategy.root_device
            mesh = build_mesh(self.layout, device.type)
        parallelize(model, config.strategy, mesh, precision=self.trainer.precision)
        model.to_empty(device="cpu" if config.strategy.cpu_offload else device)
        if self.finished_steps:  # the values are a checkpoint's
            pass
        elif config.model.init_from is not None:
            load_initial(model, config.model, self.vocab_size, seed=config.seed)
        else:
            for _, parameter, value in initial_values(model, config.seed):
                fill(parameter, value)
        self.model = model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if self.config.strategy.type is Sharding.zero1:
            self._optimizer_shards = OptimizerShards(self.model, build_mesh(self.layout, self.device.type))
            parameters = self._optimizer_shards.named_parameters()
        return self.config.optimizer.build(parameters, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step, world_size = self.finished_steps, self.trainer.world_size
        self._reseed(step)
        optimizer = self.optimizers()
        scales = self._scales(batch)
        micro_batches = self._micro_batches(batch)
        terms: dict[str, torch.Tensor] = {}
        for i, micro_batch in enumerate(micro_batches):
            if world_size > 1:
                synchronize_gradients(self.trainer.strategy.model, self.model, i == len(micro_batches) - 1)
            found = training_terms(self.objective, self.model, micro_batch)
            self.manual_backward(total(found, scales))
            for name, value in logged_means(found, scales).items():
                terms[name] = terms[name] + value if name in terms else value
        lr = self.schedule.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr
        self.last_step |= {
            "terms": terms,  # the mean over ranks is the loss
            "lr": optimizer.param_groups[0]["lr"],
        }
        self.updating = True
        if self._optimizer_shards is None:
            optimizer.step()
        else:
            self._optimizer_shards.take_gradients()
            optimizer.step()
            self._optimizer_shards.spread()
        self.updating = False
        self.model.zero_grad()
        self.finished_steps += 1

    def _scales(self, batch: Batch) -> dict[str, float | torch.Tensor]:
        """What a sum over each kind of target is multiplied by."""
        counts = training_counts(self.objective, batch)
        if self.trainer.world_size > 1:
            values = [torch.as_tensor(count, device=self.device) for count in counts.values()]
            counts = dict(zip(counts, self._sum(torch.stack(values)), strict=True))
        # Ranks average their gradients, and a step's gradient is its sum over all targets divided once.
        # Where there is no target of a kind, the sum over them is zero as well; a look would wait for the device.
        least_one = {kind: n.clamp(min=1) if isinstance(n, torch.Tensor) else n for kind, n in counts.items()}
        return {kind: self.layout.data / count for kind, count in least_one.items()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients are complete, and unscaled under 16-mixed.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = global_norm(gradients).to(self.device)
        if self.spikes is not None:
            self._skip_spike(optimizer, norm)
        if self.config.optimizer.grad_clip is not None:
            clip(gradients, self.config.optimizer.grad_clip, norm)
        self.last_step["grad_norm"] = norm
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self.last_step["loss_scale"] = scaler.get_scale()

    def _skip_spike(self, optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
        """Take the gradients away where the step is a spike: without them there is no update."""
        loss = next(iter(self.last_step["terms"].values())).float().clone()  # reduced in place
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        if self.spikes.finds(loss.item(), norm.item()):
            self.last_step["skipped"] = {"usual": self.spikes.usual(), "in_a_row": self.spikes.in_a_row}
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._add(self.trainer.datamodule.eval_splits[dataloader_idx], batch)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self._add("test", batch)

    def on_validation_epoch_end(self) -> None:
        self.evaluation = self._means(whole=is_whole(self.config.trainer.limit_val_batches))
        # Other people's callbacks (EarlyStopping) look for values here.
        self.log_dict(self.evaluation, logger=False)

    def on_test_epoch_end(self) -> None:
        self.evaluation = self._means(whole=is_whole(self.config.trainer.limit_test_batches))

    def _add(self, split: str, batch: Batch) -> None:
        counts = self.objective.counts(batch)
        terms = {name: term for name, term in self.objective.loss(self.model, batch).items() if term.logged}
        values = [*(term.sum for term in terms.values()), *counts.values()]
        row = torch.stack([torch.as_tensor(value, device=self.device).double() for value in values])
        if not batch["counts"]:  # it only keeps this rank in step with the others, who may have all the batches
            row = torch.zeros_like(row)
        self._sums[split] = self._sums[split] + row if split in self._sums else row
        self._summed = terms, list(counts)

    def _means(self, *, whole: bool) -> dict[str, float]:
        """Means over the targets of all ranks."""
        metrics = {}
        for split in list(self._sums):
            sums = self._sums.pop(split)
            if self.trainer.world_size > 1:
                sums = self._sum(sums)
            terms, kinds = self._summed
            counts = dict(zip(kinds, sums[len(terms) :].tolist(), strict=True))
            terms = {name: term._replace(sum=value) for (name, term), value in zip(terms.items(), sums, strict=False)}
            means = logged_means(terms, {kind: 1 / count if count else math.nan for kind, count in counts.items()})
            found = self.objective.metrics(
                {name: value.item() for name, value in means.items()},
                counts,
                n_bytes=self.n_bytes[split] if whole else None,
            )
            metrics |= {f"{split if whole else f'{split}_part'}/{name}": value for name, value in found.items()}
        return metrics

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all examples: ranks that see the same ones count once."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") / self.layout.tensor

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        size = self.config.micro_batch_size
        n_examples = next(iter(batch.values())).shape[0]
        if size is None or size >= n_examples:
            return [batch]
        parts = {name: value.split(size) for name, value in batch.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def _reseed(self, step: int) -> None:
        # Dropout is a function of (seed, step, rank): a resumed run draws what the uninterrupted one drew, and ranks
        # that see the same windows draw alike, attention's masks for their different heads too.
        rank = self.layout.data_rank(self.trainer.global_rank)
        seed = ((self.config.seed * 1_000_003 + step) * 65_536 + rank) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would walk over every backend, each step
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
