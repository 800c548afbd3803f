"""Runs of several strategies on processes of one machine: each process is started once and carries out all of them."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from warm_python import warm_python

TESTS = Path(__file__).parent


def carry_out(jobs: list[dict], n_ranks: int, folder: Path, *, timeout: float = 600) -> None:
    """Run jobs, as `one` understands them, one after another on `n_ranks` processes."""
    if not jobs:
        return
    path = folder / f"jobs_{n_ranks}.json"
    path.write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_ranks)}
    common |= {"LOCAL_WORLD_SIZE": str(n_ranks), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
    common |= {"TORCHELASTIC_RUN_ID": "tests"}
    alone = {name: value for name, value in common.items() if name not in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID")}
    outputs = [folder / f"jobs_{n_ranks}_{rank}.txt" for rank in range(n_ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if n_ranks > 1 else alone
        with output.open("w") as file:
            processes.append(
                subprocess.Popen(
                    [warm_python(), __file__, str(path)], cwd=folder, env=environment, stdout=file, stderr=file
                )
            )
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(1, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output.read_text()[-4000:]


def wanted(request, *names: str) -> list[tuple]:
    """The values of these parameters for which tests of the module are run now: `-m slow` and `-k` select them."""
    found = {}
    for item in request.session.items:
        given = item.callspec.params if item.module is request.module and hasattr(item, "callspec") else {}
        if set(names) <= set(given):
            found[tuple(given[name] for name in names)] = None
    return list(found)


def roll_back_to(run: Path, target: Path, step: int) -> None:
    """Copy a run as it was when it had just saved that step."""
    from gptlab.runs import checkpoint

    shutil.copytree(run, target, symlinks=True)
    kept = target / "checkpoints"
    links = [kept / name for name in ("last", "best", "last.ckpt", "best.ckpt")]
    for path in (target / "summary.json", *links):
        path.unlink(missing_ok=True)
    for saved, path in checkpoint.kept(kept):
        if saved > step:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def one(job: dict) -> None:
    """Train the small run in `job["folder"]`."""
    from lightning.pytorch.callbacks import Callback
    from small_runs import of_objective, small_run

    from gptlab.data.config import AttentionScope, Packing
    from gptlab.data.sources.config import TextConfig
    from gptlab.distributed.config import Recompute, Sharding, StrategyConfig
    from gptlab.distributed.signals import Stopped
    from gptlab.generation import scoring
    from gptlab.models.config import model_from_plain
    from gptlab.runs import amendments
    from gptlab.runs.folder import RunFolder
    from gptlab.training import config as training_config
    from gptlab.training import loop
    from gptlab.training.callbacks.throughput import Throughput
    from gptlab.training.config import (
        AdamWConfig,
        CallbacksConfig,
        CheckpointConfig,
        FinetuneConfig,
        Finetuning,
        InspectConfig,
        MuonConfig,
        SpikeAction,
        SpikeConfig,
        TrainerConfig,
    )
    from gptlab.training.loop import train

    strategy = dict(job.get("strategy", {}))
    if "type" in strategy:
        strategy["type"] = Sharding(strategy["type"])
    if "activation_checkpointing" in strategy:
        strategy["activation_checkpointing"] = Recompute(strategy["activation_checkpointing"])
    optimizer = {"adamw": AdamWConfig, "muon": MuonConfig}[job.get("optimizer", "adamw")]
    saved = {"every_steps": 5, "keep_last": 9} | job.get("checkpoint", {})
    more = dict(job.get("run", {}))
    if "model" in more:
        more["model"] = model_from_plain(more["model"])
    if "objective" in job:
        more |= of_objective(job["objective"], Path(job["folder"]).parent)
    if "finetune" in more:
        more["finetune"] = FinetuneConfig(**more["finetune"] | {"type": Finetuning(more["finetune"]["type"])})
    if "documents" in job:  # packed, attention confined to each, and steps that grow
        texts = of_objective("masked_lm", Path(job["folder"]).parent)["data"]
        more["data"] = replace(texts, packing=Packing.best_fit, attention=AttentionScope.document)
        more |= {"batch_warmup": [[256, 64]], "length_warmup": [[384, 8]]}
    if "text" in job:  # read in its order
        more["data"] = TextConfig(path=job["text"], shuffle=False)
    spike = SpikeConfig()
    if "action" in job:
        spike = SpikeConfig(action=SpikeAction(job["action"]), **job["spike"])

    class Amends(Callback):
        """Writes an amendment while the run is going, on rank 0."""

        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_rank == 0 and module.finished_steps == job["amend"]["at"] - 1:
                amendments.add(RunFolder(Path(job["folder"]), writes=True), job["amend"]["overrides"])

    class Signal(Callback):
        """Sends this process a signal in a micro-batch of a step, or in a batch of an evaluation after it."""

        def __init__(self, rank, step, micro_batch=None, evaluation_batch=None, probe_batch=None):
            self.here = int(os.environ.get("RANK", 0)) == rank
            self.probe_batch = probe_batch
            self.step, self.micro_batch, self.evaluation_batch = step, micro_batch, evaluation_batch

        def on_train_start(self, trainer, module):
            if self.here and self.probe_batch is not None:
                batches = itertools.count()  # of the first probe after the step
                measure = scoring._score_batch

                def measured(*given):
                    if module.finished_steps == self.step and next(batches) == self.probe_batch:
                        scoring._score_batch = measure
                        self._send(True)
                    return measure(*given)

                scoring._score_batch = measured
            if self.here and self.micro_batch is not None:
                module.before_micro_batch.append(
                    lambda index, _: self._send((module.finished_steps, index) == (self.step, self.micro_batch))
                )

        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            self._send(self.here and (module.finished_steps, batch_idx) == (self.step, self.evaluation_batch))

        def _send(self, now):
            if now:
                signal.raise_signal(signal.SIGTERM)

    config = small_run(
        Path(job["folder"]),
        optimizer=optimizer(lr=1e-2, grad_clip=0.3),
        strategy=StrategyConfig(**strategy),
        trainer=TrainerConfig(
            accelerator="cpu",
            devices=int(os.environ.get("WORLD_SIZE", 1)),
            precision=job.get("precision"),
            val_check_interval=5,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
        callbacks=CallbacksConfig(
            checkpoint=CheckpointConfig(**saved),
            spike=spike,
            sample=None,
            plot=False,
            evaluate=_evaluations(Path(job["folder"]).parent) if job.get("evaluate") else {},
            inspect=InspectConfig(every_steps=4 if job.get("evaluate") else None),
        ),
        **more,
    )
    callbacks = [_bytes_callback(Path(job["folder"])), *([Amends()] if "amend" in job else [])]
    if job.get("slow"):
        Throughput.is_slow = lambda self, n_steps: True
        training_config.EVAL_TOKENS = 128
        scoring.BATCH_TOKENS = 16
    if "recomputed" in job:  # on the last rank, which has less memory than the others
        is_last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
        make_plan, mine = loop.make_plan, tuple(job["recomputed"]) if is_last else ()
        with patch.object(loop, "make_plan", lambda *a, **o: replace(make_plan(*a, **o), recomputed=mine)):
            train(config, callbacks)
        return
    if "signal" not in job:
        train(config, callbacks)
        return
    try:
        train(config, [*callbacks, Signal(**job["signal"])])
    except Stopped as stopped:
        (Path(job["folder"]) / f"stopped_{os.environ.get('RANK', 0)}").write_text(str(stopped))


def _evaluations(folder: Path) -> dict:
    """Another text and two questions, measured every three steps."""
    rank = os.environ.get("RANK", 0)  # each rank writes its own
    text, questions = folder / f"other_{rank}.txt", folder / f"questions_{rank}.jsonl"
    text.write_text("It was that his for they. " * 3)
    lines = [{"q": "a", "a": "x"}, {"q": "b", "a": "yy"}]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = {"data": str(questions), "prompt": "{q}:", "answer": "{a}", "choices": ["x", "yy"]}
    return {"other": {"corpus": str(text), "every_steps": 3}, "choice": asked | {"every_steps": 5}}


def _fsdp_groups(model):
    from torch.distributed.fsdp import FSDPModule

    states = (module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule))
    return [state._fsdp_param_group for state in states if state._fsdp_param_group is not None]


def _bytes_callback(folder: Path):
    """Writes down what tensors this rank holds: before backward, before the optimizer's step, and after it."""
    from lightning.pytorch.callbacks import Callback

    from gptlab.distributed.sharded_tensors import local

    def size(tensors) -> int:
        return sum(local(t).numel() * t.element_size() for t in tensors if t is not None)

    class Bytes(Callback):
        def __init__(self):
            self.held = {}

        def on_before_backward(self, trainer, module, loss):
            self.held["weights_before_backward"] = size(module.model.parameters())
            # What earlier micro-batches of the same step left: FSDP may hold it apart from p.grad.
            parameters = [p for group in _fsdp_groups(module.model) for p in group.fsdp_params]
            whole = size(p.unsharded_accumulated_grad for p in parameters)
            self.held["whole_gradients"] = max(self.held.get("whole_gradients", 0), whole)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.held["weights"] = size(module.model.parameters())
            self.held["gradients"] = size(p.grad for p in module.model.parameters())

        def on_train_end(self, trainer, module):
            states = trainer.optimizers[0].state.values()
            self.held["optimizer"] = size(v for state in states for v in state.values() if v.ndim)
            self.held["resident"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            (folder / f"bytes_{trainer.global_rank}.json").write_text(json.dumps(self.held))

    return Bytes()


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        one(job)
