"""Runs that are killed again and again, against an uninterrupted run: every recorded loss has to be bit-identical.

    python benchmarks/faults.py [--steps 200] [--kills 20] [--kills-sharded 10] [--seed 0] [--keep FOLDER]

A small run with dropout and loader workers is started and killed by SIGKILL until so many kills are reached, then left
to finish. A kill happens at a random moment: after a random delay, or inside a random call of a save (the state is
being written, flushed with fsync, renamed). Under fsdp, on two processes, it hits either rank; the other has to end by
itself. The table shows the step that each start continued from, and what was left unfinished.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# train.py, which kills itself at a chosen call of one of the functions that a step or a save calls.
DRIVER = """
import os, signal, sys, threading, time

if __name__ == "__main__":
    moment, _, count = os.environ.get("KILL_AT", "").partition(":")
    left = int(count or 0)

    def counted(function):
        def wrapper(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper

    if os.environ.get("LOCAL_RANK", "0") == os.environ.get("KILL_RANK"):
        if moment in ("fsync", "replace"):
            setattr(os, moment, counted(getattr(os, moment)))
        elif moment == "write":
            import safetensors.torch
            from gptlab.runs import checkpoint
            checkpoint._Writer.write = counted(checkpoint._Writer.write)
            safetensors.torch.save_file = counted(safetensors.torch.save_file)
        elif moment:
            from gptlab.training.module import LanguageModule
            step = LanguageModule.training_step
            def first(*args):  # the clock starts with the first step
                global left
                if left > 0:
                    delay, left = left / 1000, 0
                    threading.Thread(
                        target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
                    ).start()
                return step(*args)
            LanguageModule.training_step = first
    from gptlab.cli.train import main  # not by its path: the other ranks are started as this program was
    sys.exit(main(sys.argv[1:], sys.argv[:1]))
"""


def overrides_of(text: Path, n_steps: int, sharded: bool) -> list[str]:
    values = {
        "data": "text",
        "data.path": text,
        "data.n_workers": 1,
        "tokenizer": "byte",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.d_model": 64,
        "model.context_length": 32,
        "model.dropout": 0.1,
        "batch_tokens": 512,
        "budget_steps": n_steps,
        "optimizer": "adamw",
        "trainer.accelerator": "cpu",
        "trainer.val_check_interval": 50,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "callbacks.checkpoint.every_steps": 3,
        "callbacks.sample": "null",
        "callbacks.plot": "false",
    }
    if sharded:
        values |= {"strategy": "fsdp", "trainer.devices": 2}
    return [f"{key}={value}" for key, value in values.items()]


def start(overrides: list[str], folder: Path, **environment: str) -> tuple[int, str, float]:
    """Run to the end; returns the exit code, stderr, and the seconds that other processes of the run outlived it."""
    process = subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=600)
    ended = time.monotonic()
    while _alive(process.pid) and time.monotonic() - ended < 60:
        time.sleep(0.1)
    lingered = time.monotonic() - ended
    if _alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors, lingered


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def recorded(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def moment_of(draw: random.Random, rank: str) -> str:
    """Half of the kills by the clock, half inside a save; only rank 0 renames."""
    if draw.random() < 0.5:
        return f"clock:{draw.randint(1, 150)}"
    return f"{draw.choice(('fsync', 'write', 'replace') if rank == '0' else ('fsync', 'write'))}:{draw.randint(1, 9)}"


def torture(folder: Path, n_steps: int, n_kills: int, *, sharded: bool, seed: int) -> bool:
    """Kill one run `n_kills` times and print what happened; returns whether it equals the uninterrupted run."""
    title = "fsdp on two processes" if sharded else "one process"
    overrides = overrides_of(folder / "text.txt", n_steps, sharded)
    run = folder / ("killed-fsdp" if sharded else "killed")
    straight = run.with_name(f"{run.name}-not")
    code, errors, _ = start([*overrides, f"run_dir={straight.name}"], folder)
    assert code == 0, errors
    draw = random.Random(seed)
    print(f"\n{title}: {n_steps} steps, {n_kills} kills")
    print(f"{'kill':>4}  {'moment':<12} {'rank':>4}  {'from':>5}  {'reached':>7}  left behind")
    kills = 0
    while kills < n_kills:
        rank = str(draw.randrange(2)) if sharded else "0"
        moment = moment_of(draw, rank)
        before = _events(run)
        code, errors, lingered = start([*overrides, f"run_dir={run.name}"], folder, KILL_AT=moment, KILL_RANK=rank)
        if code == 0:
            print(f"      {moment:<12} {rank:>4}  the run had finished before that moment; another one starts")
            if not _compare(run, straight):
                return False
            shutil.rmtree(run)
            continue
        kills += 1
        news = _events(run)[len(before) :]
        began = next((e["step"] for e in news if e["event"] in ("started", "continued")), "-")
        rows = recorded(run) if (run / "metrics.csv").exists() else []
        left = [p.name for p in (run / "checkpoints").glob(".*")] if (run / "checkpoints").is_dir() else []
        if sharded and lingered > 0.2:
            left.append(f"the other rank, for {lingered:.1f} s")
        reached = rows[-1]["step"] if rows else "-"
        print(f"{kills:>4}  {moment:<12} {rank:>4}  {began:>5}  {reached:>7}  {', '.join(left)}", flush=True)
    code, errors, _ = start([*overrides, f"run_dir={run.name}"], folder)
    assert code == 0, errors
    if "skipped:" in errors:
        print(errors)
    return _compare(run, straight)


def _events(run: Path) -> list[dict]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _compare(run: Path, straight: Path) -> bool:
    same = recorded(run) == recorded(straight)
    print(
        f"{len(recorded(run))} rows of metrics.csv, {'bit-identical' if same else 'NOT EQUAL'} to the uninterrupted run"
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-sharded", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to work in, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "driver.py").write_text(DRIVER)
        draw = random.Random(1)
        (folder / "text.txt").write_text(
            " ".join(draw.choice(("to", "be", "or", "not", "that")) for _ in range(20_000))
        )
        equal = [torture(folder, given.steps, given.kills, sharded=False, seed=given.seed)]
        equal += [torture(folder, given.steps, given.kills_sharded, sharded=True, seed=given.seed)]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    from ending import finish

    finish(main)
