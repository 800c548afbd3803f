"""Planned against measured memory of training on a CPU: a fresh process a case, its peak of resident memory.

    python benchmarks/memory.py [--all] [--only TEXT]

Twelve runs span size, batch, optimizer, precision and activation checkpointing; `--all` adds every combination. The
peak is that of the whole process, Python and its imports too, as the plan counts it. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gptlab.distributed.allocator import NO_THREAD_CACHE, TUNABLES

MODELS = {
    "decoder": "model=small model.n_layer=4 model.d_model=256 model.n_head=8 tokenizer=byte",
    "wide decoder": "model=small model.n_layer=2 model.d_model=768 model.n_head=12 tokenizer=byte",
    "GPT-2": "model=gpt124m model.n_layer=3 model.d_model=384 model.n_head=6 tokenizer=byte",  # vocabulary 50,257
    "experts": "model=moe_small tokenizer=byte",
    "encoder": "model=bert_laptop model.n_layer=4 model.d_model=256 model.n_head=8 objective=masked_lm",
    "encoder_decoder": "model=t5_laptop model.n_layer=2 model.d_model=256 model.n_head=8",
}
SIZES = ((512, 8), (1024, 2), (256, 16))  # tokens of a sequence, sequences of a micro-batch
OPTIONS = {
    "dropout": "model.dropout=0.1",
    "full": "strategy.activation_checkpointing=full",
    "selective": "strategy.activation_checkpointing=selective",
    "budget": "strategy.activation_checkpointing=budget strategy.memory_budget_gib=0.11",  # two blocks or three of four
    "muon": "optimizer=muon",
    "adamw": "optimizer=adamw",
    "bf16-mixed": "trainer.precision=bf16-mixed",
    "bf16-true": "trainer.precision=bf16-true",
    "accumulating": "",  # the step is two micro-batches
}
# model, tokens of a sequence, sequences of a micro-batch, options
SELECTED = (
    ("decoder", 512, 8, "adamw"),
    ("decoder", 512, 8, "adamw, dropout"),
    ("decoder", 1024, 2, "muon, full"),
    ("decoder", 256, 16, "adamw, bf16-mixed"),
    ("decoder", 256, 16, "muon, dropout, selective, accumulating"),
    ("wide decoder", 256, 4, "adamw, bf16-true"),
    ("wide decoder", 128, 16, "muon"),
    ("GPT-2", 256, 4, "adamw, accumulating"),
    ("experts", 128, 32, "muon"),
    ("encoder", 512, 8, "adamw, dropout"),
    ("encoder_decoder", 512, 8, "adamw, dropout, full"),
    ("encoder_decoder", 256, 16, "muon"),
)
COMBINED = ("", "dropout", "dropout, full", "dropout, selective", "full", "selective")
MIB = 2**20


def cases(*, every: bool) -> dict[str, str]:
    """Overrides by name."""
    chosen = list(SELECTED)
    if every:
        models = ("decoder", "encoder", "encoder_decoder")
        chosen += [(model, *size, options) for model in models for size in SIZES for options in COMBINED]
    return {
        f"{model} {n} x {length}{f', {options}' if options else ''}": overrides(model, length, n, options)
        for model, length, n, options in chosen
    }


def overrides(model: str, context_length: int, n_sequences: int, options: str) -> str:
    """What to type for a case."""
    names = options.split(", ") if options else []
    times = 2 if "accumulating" in names else 1
    typed = [MODELS[model], *filter(None, (OPTIONS[name] for name in names))]
    if "dropout" not in names:
        typed.append("model.dropout=0")
    typed += [f"model.context_length={context_length}", f"micro_batch_size={n_sequences}"]
    return " ".join([*typed, f"batch_tokens={context_length * n_sequences * times}"])


def measure(overrides: list[str], folder: str, name: str = "run") -> dict[str, int | dict[str, int]]:
    """Train for two steps and an evaluation; planned bytes by part, and the peak of resident memory."""
    import lightning

    import gptlab
    from gptlab.training import loop

    plans, measured = [], {}
    make_plan = loop.make_plan
    loop.make_plan = lambda *given, **options: plans.append(make_plan(*given, **options)) or plans[-1]

    class Measure(lightning.Callback):
        def on_train_end(self, trainer, module):
            measured["peak"] = peak_bytes()

    config = gptlab.compose(
        "data=text",
        f"data.path={folder}/texts",
        "budget_steps=2",
        "callbacks.sample=null",
        "trainer.enable_checkpointing=false",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "trainer.enable_model_summary=false",
        "trainer.limit_val_batches=1",
        "schedule.warmup_steps=0",
        "callbacks.plot=false",
        f"run_dir={folder}/{name}",
        *overrides,
    )
    gptlab.train(config, [Measure()])
    return {"measured": measured["peak"], "planned": plans[-1].memory}


def peak_bytes() -> int:
    """The most that this process has held in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def write_texts(folder: Path) -> None:
    """Documents of bytes that a tokenizer of any kind learns from in a moment."""
    (folder / "texts").mkdir()
    for i in range(60):
        lines = (f"The sum of {i} and {j} is {i + j}, and their product is {i * j}.\n" for j in range(150))
        (folder / "texts" / f"{i:02}.txt").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every combination too, which takes half an hour")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        found = measure(given.case.split(), given.folder)
        return print(json.dumps(found))
    chosen = {name: typed for name, typed in cases(every=given.all).items() if given.only in name}
    if not chosen:
        sys.exit(f"error: --only {given.only!r} is in no case's name, as in {next(iter(cases(every=False)))!r}")
    print("| case | planned MiB | measured MiB | planned / measured |\n|---|---:|---:|---:|")
    ratios = []
    for name, typed in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            write_texts(Path(folder))
            command = [sys.executable, __file__, "--case", typed, "--folder", folder]
            environment = {**os.environ, TUNABLES: NO_THREAD_CACHE}  # as train.py starts itself
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"| {name} | {done.stderr.strip().splitlines()[-1]} |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        planned, measured = found["planned"]["total"], found["measured"]
        print(f"| {name} | {planned / MIB:,.0f} | {measured / MIB:,.0f} | {planned / measured:.2f} |", flush=True)
        ratios.append(planned / measured)
    if not ratios:
        sys.exit("error: no run ended")
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    print(f"\nError: median {statistics.median(errors):.1%}, largest {errors[-1]:.1%}, of {len(errors)} runs.")


if __name__ == "__main__":
    from ending import finish

    finish(main)
