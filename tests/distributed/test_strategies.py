"""Two processes on the CPU learn what one learns, step by step."""

import json
import shutil

import pytest
from runs import train, words_of, write_text

from gptlab.training.folder import read_metrics

TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategies")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def words(place):
    # Clipping is active, each device accumulates over two passes, and the optimiser has two kinds of groups.
    return words_of(
        place / "text.txt",
        micro_batch_size=2,
        **{"optimizer.clip_norm": 0.3, "callbacks.checkpoint.every_steps": 5, "callbacks.checkpoint.keep_last": 9},
    )


@pytest.fixture(scope="module")
def one(place, words):
    done = train([*words, "run_dir=one"], place)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(place / "one" / "metrics.csv")
    assert all(row["train/grad_norm"] > 0.3 for row in rows), "clipping is active"
    return rows


def close(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for got, want in zip(rows, expected, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte"):
            if name in want:
                assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-5), (name, got["step"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(place, words, one, strategy):
    done = train([*words, *TWO, f"strategy={strategy}", f"run_dir={strategy}"], place)
    assert done.returncode == 0, done.stderr
    close(read_metrics(place / strategy / "metrics.csv"), one)
    assert done.stdout.count("run_dir") == 0 and done.stdout.rstrip().splitlines()[-1].startswith("val/loss")
    started = json.loads((place / strategy / "events.jsonl").read_text().splitlines()[0])
    whole = json.loads((place / "one" / "events.jsonl").read_text().splitlines()[0])["parameter_bytes"]
    share = {"ddp": 1, "fsdp": 2}[strategy]
    assert whole / share <= started["parameter_bytes"] <= 1.02 * whole / share


def test_muon_orthogonalises_whole_matrices_whatever_their_shards(place, words):
    words = [word for word in words if not word.startswith("optimizer=")]
    for name, how in (("muon", []), ("muon-fsdp", [*TWO, "strategy=fsdp"])):
        done = train([*words, "optimizer=muon", "optimizer.lr=0.01", *how, f"run_dir={name}"], place)
        assert done.returncode == 0, done.stderr
    close(read_metrics(place / "muon-fsdp" / "metrics.csv"), read_metrics(place / "muon" / "metrics.csv"))


@pytest.mark.parametrize(("saved", "continued"), [("fsdp", "one"), ("one", "ddp"), ("ddp", "fsdp")])
def test_a_run_goes_on_under_another_strategy(place, words, one, saved, continued):
    """Saved at step 5 under one strategy, carried on to step 10 under another."""
    source = place / saved
    if not source.exists():
        train([*words, *TWO, f"strategy={saved}", f"run_dir={saved}"], place)
    target = place / f"{saved}-{continued}"
    shutil.copytree(source, target)
    (target / "summary.json").unlink()
    for later in ("step_00000010.ckpt", "last.ckpt", "best.ckpt"):
        (target / "checkpoints" / later).unlink()
    how = [] if continued == "one" else [*TWO, f"strategy={continued}"]
    done = train([*words, *how, f"run_dir={target.name}"], place)
    assert done.returncode == 0, done.stderr
    assert "continued from step 5" in done.stdout
    close(read_metrics(target / "metrics.csv"), one)


def test_a_batch_that_two_devices_cannot_share_is_refused(place, words):
    done = train([*words, *TWO, "strategy=ddp", "batch_tokens=48", "run_dir=odd"], place)
    assert done.returncode == 2 and "batch_tokens=48 is not divisible" in done.stderr and "2 devices" in done.stderr
    assert not (place / "odd").exists()
