"""What a training step costs over a bare loop: gptlab with everything on, beside Lightning's Trainer.

    python benchmarks/overhead.py [--steps 400] [--rounds 7]

Five contenders take the same steps of the same tiny model on the same sequences, in turn, in one process on a
terminal of its own (progress bars draw only on a terminal):

    bare       a loop of forward, backward, clip, step
    off        Lightning's Trainer with bar, logger, checkpoints and summary switched off
    default    Lightning's Trainer as it comes: bar, CSVLogger, checkpoint callback, the loss logged each step
    gptlab     progress bar, metrics.csv, checkpoints and metrics on
    no chain   the same without the hash chain (callbacks.chain=null)
"""

import argparse
import json
import logging
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

TEXT = "".join(f"{i} bottles on the wall, {i * i % 97} of them green. " for i in range(4000))


def setting(folder: Path, steps: int, *, chain: bool = True):
    from gptlab.config import RunConfig
    from gptlab.data.sources.config import TextConfig
    from gptlab.data.tokenizers.config import ByteConfig
    from gptlab.models.decoder.config import DecoderConfig
    from gptlab.training.config import AdamWConfig, CallbacksConfig, ChainConfig, ConstantConfig, TrainerConfig

    return RunConfig(
        model=DecoderConfig(n_layer=2, n_head=4, d_model=64, context_length=32),
        data=TextConfig(path=str(folder / "text.txt"), val_fraction=0.0, cache_dir=str(folder / "cache")),
        tokenizer=ByteConfig(),
        optimizer=AdamWConfig(lr=1e-3),
        schedule=ConstantConfig(),
        trainer=TrainerConfig(accelerator="cpu", devices=1, enable_model_summary=False),
        callbacks=CallbacksConfig(sample=None, plot=False, chain=ChainConfig() if chain else None),
        batch_tokens=256,
        budget_steps=steps,
        resume=None,
        run_dir=str(folder / "run"),
    )


class Contenders:
    """The contenders, each returning milliseconds per step."""

    def __init__(self, folder: Path, steps: int):
        import torch

        from gptlab.data.examples.windows import SlidingWindows
        from gptlab.data.order import ExampleOrder
        from gptlab.data.prepare import prepare
        from gptlab.distributed.allocator import keep_freed_memory
        from gptlab.steps import Steps
        from gptlab.training.datamodule import RemainingSteps, TrainBatches

        keep_freed_memory()  # for all of them
        (folder / "text.txt").write_text(TEXT)
        self.folder, self.steps = folder, steps
        self.config = setting(folder, steps)
        data = prepare(self.config.data, self.config.tokenizer, progress=False)
        self.objective = self.config.objective.build(
            tokenizer=data.tokenizer, model=self.config.model, data=self.config.data, context_length=32, seed=0
        )
        windows = SlidingWindows(data.train.tokens, 32, 32)
        batches = TrainBatches(
            windows, self.objective, ExampleOrder(0, len(windows)), steps=Steps.of(32, 256), rank=0, world_size=1
        )
        self.loader = lambda: torch.utils.data.DataLoader(batches, batch_size=None, sampler=RemainingSteps(0, steps))

    def model(self):
        from gptlab.models.build import build_model

        return build_model(self.config.model, 257, seed=0)

    def optimizer(self, model):
        import torch

        return self.config.optimizer.build(model.named_parameters(), device=torch.device("cpu"))

    def bare(self) -> float:
        import torch

        model = self.model()
        optimizer = self.optimizer(model)
        parameters = list(model.parameters())
        started = time.perf_counter()
        for batch in self.loader():
            self.objective.mean_loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / self.steps * 1e3

    def lightning(self, *, everything: bool) -> float:
        import lightning
        from lightning.pytorch.loggers import CSVLogger

        contenders = self

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = contenders.model()

            def configure_optimizers(self):
                return contenders.optimizer(self.model)

            def training_step(self, batch, _):
                mean = contenders.objective.mean_loss(self.model, batch)
                if everything:
                    self.log("train/loss", mean, prog_bar=True)
                return mean

        clock = _clock()
        off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        on = {"logger": CSVLogger(self.folder / "csv")}
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=self.steps,
            gradient_clip_val=1.0,
            default_root_dir=self.folder,
            enable_model_summary=False,
            callbacks=[clock],
            use_distributed_sampler=False,
            **(on if everything else off),
        )
        trainer.fit(Module(), self.loader())
        return clock.seconds / self.steps * 1e3

    def gptlab(self, *, chain: bool = True) -> float:
        import shutil

        from gptlab.training.loop import train

        clock = _clock()
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        train(setting(self.folder, self.steps, chain=chain), callbacks=[clock])
        return clock.seconds / self.steps * 1e3


def _clock():
    import lightning

    class Clock(lightning.Callback):
        def on_train_start(self, *_):
            self.started = time.perf_counter()

        def on_train_end(self, *_):
            self.seconds = time.perf_counter() - self.started

    return Clock()


def measure(steps: int, rounds: int, result: Path) -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        contenders = Contenders(Path(folder), steps)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        contenders_by_name = {
            "bare": contenders.bare,
            "off": lambda: contenders.lightning(everything=False),
            "default": lambda: contenders.lightning(everything=True),
            "gptlab": contenders.gptlab,
            "no chain": lambda: contenders.gptlab(chain=False),
        }
        times = {name: [] for name in contenders_by_name}
        for i in range(rounds + 1):
            for name, take_steps in contenders_by_name.items():
                milliseconds = take_steps()
                if i:  # the first round warms up
                    times[name].append(milliseconds)
        result.write_text(json.dumps(times))


def report(times: dict[str, list[float]]) -> str:
    added = {
        name: statistics.median(t - b for t, b in zip(values, times["bare"], strict=True))
        for name, values in times.items()
    }
    lines = [f"{'':10}{'ms a step':>12}{'min':>9}{'max':>9}{'added to bare':>16}"]
    for name, values in times.items():
        row = f"{name:10}{statistics.median(values):12.3f}{min(values):9.3f}{max(values):9.3f}"
        lines.append(row + (f"{added[name]:+16.3f}" if name != "bare" else ""))
    lines.append(f"gptlab over Lightning switched off: {added['gptlab'] - added['off']:+.3f} ms a step (at most +0.5)")
    chain = statistics.median(t / b - 1 for t, b in zip(times["gptlab"], times["no chain"], strict=True))
    lines.append(f"the hash chain: {chain:+.1%} of a step (at most +5%)")
    lines.append(f"gptlab's addition to default's: {added['gptlab'] / added['default']:.2f} (at most 0.33)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.result:
        return measure(given.steps, given.rounds, given.result)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "times.json"
        ours, theirs = pty.openpty()
        command = [sys.executable, __file__, "--steps", str(given.steps), "--rounds", str(given.rounds)]
        child = subprocess.Popen([*command, "--result", str(result)], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        output: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(ours, output))
        reader.start()
        code = child.wait()
        reader.join()
        if code:
            sys.exit(b"".join(output).decode(errors="replace")[-4000:])
        print(report(json.loads(result.read_text())))


def _drain(terminal: int, output: list[bytes]) -> None:
    while True:
        try:
            block = os.read(terminal, 65_536)
        except OSError:
            return
        if not block:
            return
        output.append(block)


if __name__ == "__main__":
    from ending import finish

    finish(main)
