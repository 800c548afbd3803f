"""Tokens and time to nanoGPT's loss on the characters of Shakespeare: experiment=speedrun_shakespeare beside nanoGPT.

    python benchmarks/learning.py [--seeds 11 12 13] [--nanogpt FOLDER] [--text FILE] [--ingredients]

Every run is a process of its own; seed by seed the contenders take turns. The clock runs from the first step until the
first validation that is at most the target, over all that a run does but validations, which come every few steps;
a loss is that of the whole validation split, each character predicted once, from at most 64 characters before it.

The target is what nanoGPT reaches with its recipe for computers without a GPU, 2,000 steps of 12 x 64 characters. With
--nanogpt that run is made here too, from its model.py and the numbers of its README, on the same text with the same
threads; its clock runs to the end of its 2,000 steps, at which its loss is measured.

--ingredients trains with one part of the recipe at a time taken out, on every seed, and says what it was worth.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

TARGET = 1.8857  # nats per character
TEXT = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # SHA-256
NANOGPT_STEPS, BATCH, CONTEXT = 2_000, 12, 64  # of its README: python train.py config/train_shakespeare_char.py ...
VALIDATE_EVERY = 5  # steps
EXPERIMENT = "experiment=speedrun_shakespeare"

# The experiment with AdamW, whose learning rate is the best of 3e-3, 6e-3, 1.2e-2 and 2.4e-2.
WITH_ADAMW = [
    *("data=shakespeare", "tokenizer=char", "model=small", "optimizer=adamw", "schedule=wsd"),
    *("model.context_length=64", "model.n_head=2", "model.token_shift=true", "model.logit_softcap=15.0"),
    *("data.stride=1", "optimizer.lr=6e-3", "optimizer.weight_decay=0", "optimizer.grad_clip=null"),
    *("schedule.warmup_steps=0", "schedule.warmup_fraction=null", "schedule.decay_fraction=0.7"),
    *("schedule.min_lr_ratio=0", "batch_tokens=768", "budget_steps=225", "budget_tokens=null"),
]
# What takes a part of the recipe out, in favour of what GPT-2 or the default of the optimizer has.
WITHOUT = {
    "token shift": ["model.token_shift=false"],
    "rotary positions": ["model.position=learned"],
    "QK-norm": ["model.qk_norm=false"],
    "squared ReLU": ["model.feedforward=gelu"],
    "projections and head at zero": ["model.init=gpt2"],
    "untied head": ["model.tie_embeddings=true"],
    "soft-capped logits": ["model.logit_softcap=null"],
    "two heads (four)": ["model.n_head=4"],
    "RMSNorm": ["model.norm=layernorm"],
    "decay to zero": ["schedule.min_lr_ratio=0.1"],
    "decay over 70% (20%)": ["schedule.decay_fraction=0.2"],
    "no warmup (5%)": ["schedule.warmup_steps=10"],
    "no weight decay (0.1)": ["optimizer.weight_decay=0.1"],
    "no gradient clipping (1.0)": ["optimizer.grad_clip=1.0"],
    "momentum 0.9 (0.95)": ["optimizer.momentum=0.95"],
    "beta1 0.8 (0.9)": ["optimizer.beta1=0.9"],
    "AdamW's own rate": ["optimizer.adamw_lr=null"],
}


def gptlab(given: dict[str, Any]) -> dict[str, Any]:
    """Train the experiment; every validation as (tokens, seconds until then without validations, loss)."""
    import lightning

    import gptlab

    class Clock(lightning.Callback):
        """Runs but for validations."""

        def __init__(self):
            self.seconds, self.started, self.at = 0.0, None, {}

        def on_train_batch_start(self, trainer, *_) -> None:
            if self.started is None:
                self.started = time.perf_counter()

        def on_validation_start(self, trainer, *_) -> None:
            if self.started is not None:
                self.seconds += time.perf_counter() - self.started
                self.started = None
            self.at[trainer.global_step] = self.seconds

        def on_validation_end(self, trainer, *_) -> None:
            if trainer.global_step:
                self.started = time.perf_counter()

    clock = Clock()
    overrides = [
        *given["overrides"],
        *([f"data.path={given['text']}"] if given["text"] else []),
        f"seed={given['seed']}",
        f"trainer.val_check_interval={given['every']}",
        "trainer.accelerator=cpu",
        "trainer.enable_checkpointing=false",
        "trainer.enable_progress_bar=false",
        "callbacks.sample=null",
        "callbacks.plot=false",
        f"run_dir={given['folder']}/run",
    ]
    rows = gptlab.train(gptlab.compose(*overrides), callbacks=[clock]).metrics()
    rows = rows[rows["step"] > 0].dropna(subset="val/loss")
    return {
        "validations": [
            (int(tokens), clock.at[int(step)], float(loss))
            for step, tokens, loss in rows[["step", "tokens", "val/loss"]].itertuples(index=False)
        ]
    }


def nanogpt(given: dict[str, Any]) -> dict[str, Any]:
    """The steps of nanoGPT's train.py with its model.py and the flags of its README for a CPU."""
    import torch
    import torch.nn.functional as F

    sys.path.insert(0, given["nanogpt"])
    from model import GPT, GPTConfig

    torch.manual_seed(given["seed"])
    text = Path(given["text"]).read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    train, val = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": CONTEXT, "vocab_size": len(ids)}
    model: Any = GPT(GPTConfig(**shape, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    started = time.perf_counter()
    for step in range(NANOGPT_STEPS):
        rate = 1e-3 * (step + 1) / 101 if step < 100 else None
        if rate is None:
            progress = (step - 100) / (NANOGPT_STEPS - 100)
            rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * (1e-3 - 1e-4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train) - CONTEXT, (BATCH,)).tolist()
        tokens = torch.stack([train[i : i + CONTEXT] for i in starts])
        targets = torch.stack([train[i + 1 : i + 1 + CONTEXT] for i in starts])
        _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for i in range(0, len(val) - 1, CONTEXT):
            tokens, targets = val[i : i + CONTEXT][None], val[i + 1 : i + 1 + CONTEXT]
            logits, _ = model(tokens[:, : len(targets)], targets[None])  # with targets it gives those of all positions
            nats += F.cross_entropy(logits[0], targets, reduction="sum").item()
    return {"validations": [(NANOGPT_STEPS * BATCH * CONTEXT, seconds, nats / (len(val) - 1))]}


CONTENDERS = {"gptlab": gptlab, "nanogpt": nanogpt}


def run(contender: str, **given: Any) -> list[tuple[int, float, float]]:
    """The validations of one run in a process of its own, as (tokens, seconds, loss)."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"overrides": [EXPERIMENT], "every": VALIDATE_EVERY, "folder": folder, **given}
        command = [sys.executable, __file__, "--worker", contender, json.dumps(settings)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(given["threads"])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode < 0:
        sys.exit(f"error: {contender} was killed by signal {-done.returncode}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        sys.exit(f"error: {contender} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])["validations"]]


def crossing(validations: list[tuple[int, float, float]]) -> tuple[int, float, float] | None:
    """The first validation that is at most the target; None where none is."""
    return next((row for row in validations if row[2] <= TARGET), None)


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so much, as an argument."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return read


def race(seeds: list[int], given: dict[str, Any]) -> None:
    """The experiment and, where it is there, nanoGPT, seed by seed."""
    print(f"{'':12}seed    tokens   seconds   loss   (target {TARGET}, at the first validation that reaches it)")
    ratios = []
    for seed in seeds:
        reached = crossing(run("gptlab", seed=seed, **given))
        if reached is None:
            print(f"{'gptlab':12}{seed:4}   did not reach it", flush=True)
        else:
            print(f"{'gptlab':12}{seed:4}{reached[0]:10,}{reached[1]:10.1f}{reached[2]:9.4f}", flush=True)
        if given["nanogpt"]:
            (theirs,) = run("nanogpt", seed=seed, **given)
            print(f"{'nanoGPT':12}{seed:4}{theirs[0]:10,}{theirs[1]:10.1f}{theirs[2]:9.4f}   at its end", flush=True)
            if reached is not None:
                ratios.append((theirs[0] / reached[0], theirs[1] / reached[1]))
    if ratios:
        tokens, seconds = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"median of {len(ratios)}: 1/{tokens:.1f} of nanoGPT's tokens and 1/{seconds:.1f} of its time")


def ingredients(seeds: list[int], given: dict[str, Any]) -> None:
    """What each part of the recipe is worth, as the loss without it."""
    print(f"{'without':32}loss by seed{'':14}mean    worth   range of it over seeds")
    whole: list[float] = []
    runs = {"(the whole recipe)": [EXPERIMENT], "Muon": WITH_ADAMW}
    for name, overrides in (runs | {name: [EXPERIMENT, *changes] for name, changes in WITHOUT.items()}).items():
        losses = [
            run("gptlab", **given | {"seed": seed, "overrides": overrides, "every": 10_000})[-1][2] for seed in seeds
        ]
        whole = whole or losses
        worth = [loss - own for loss, own in zip(losses, whole, strict=True)]
        listed = " ".join(f"{loss:.4f}" for loss in losses)
        span = "" if losses is whole else f"{statistics.fmean(worth):+8.4f}   {min(worth):+.4f} to {max(worth):+.4f}"
        print(f"{name:32}{listed:22}{statistics.fmean(losses):8.4f}{span}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        with redirect_stdout(sys.stderr):
            found = CONTENDERS[sys.argv[2]](json.loads(sys.argv[3]))
        print(json.dumps(found))
        return
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[11, 12, 13])
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="nanoGPT, from which model.py is imported")
    parser.add_argument("--text", type=Path, metavar="FILE", help="tinyshakespeare; left out: it is fetched")
    parser.add_argument("--ingredients", action="store_true", help="what each part of the recipe is worth")
    asked = parser.parse_args()
    for path, kind in ((asked.nanogpt and asked.nanogpt / "model.py", "--nanogpt"), (asked.text, "--text")):
        if path is not None and not path.is_file():
            parser.error(f"{kind}: {path} is {'a folder' if path.is_dir() else 'not there'}; name a file")
    if asked.text is not None and sha256(asked.text.read_bytes()).hexdigest() != TEXT:
        print(f"{asked.text} is not tinyshakespeare as it is published: the target means nothing for it")
    if asked.nanogpt and not asked.text and not asked.ingredients:
        parser.error("--nanogpt needs --text FILE, the text that both train on")
    given = {
        "threads": asked.threads,
        "nanogpt": asked.nanogpt and str(asked.nanogpt.resolve()),
        "text": asked.text and str(asked.text.resolve()),
    }
    if asked.ingredients:
        ingredients(asked.seeds, given)
    else:
        race(asked.seeds, given)


if __name__ == "__main__":
    from ending import finish

    finish(main)
