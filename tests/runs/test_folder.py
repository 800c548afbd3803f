"""The run folder: numbers read back exactly, and nobody else writes."""

import json
import math
import random
import subprocess
import sys

import pytest

from gptlab.runs.folder import MetricsFile, RunFolder, cut_metrics, read_metrics

COLUMNS = ["step", "tokens", "train/loss", "val/loss"]


def write(path, rows):
    file = MetricsFile(path, COLUMNS)
    for row in rows:
        file.write(row)
    file.close()


def rows(n):
    draw = random.Random(0)
    return [{"step": i, "tokens": 10 * i, "train/loss": draw.random() * math.pi} for i in range(1, n + 1)]


def test_floats_read_back_exactly(tmp_path):
    written = rows(50)
    written[7]["val/loss"] = 1 / 3
    write(tmp_path / "m.csv", written)
    assert read_metrics(tmp_path / "m.csv") == written


def test_cutting_keeps_what_was_before_the_checkpoint(tmp_path):
    path = tmp_path / "m.csv"
    write(path, rows(20))
    with open(path, "a") as file:
        file.write("21,210,3.")  # the process was killed while writing
    cut_metrics(path, path, 12, COLUMNS)
    assert read_metrics(path) == rows(12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv"]


def test_a_second_run_is_kept_out(tmp_path):
    first = RunFolder(tmp_path / "run", writes=True)
    code = (
        "from pathlib import Path; import sys\n"
        "from gptlab.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), writes=True).lock(): pass"
    )
    with first.lock():
        second = subprocess.run([sys.executable, "-c", code, str(first.path)], capture_output=True, text=True)
    assert second.returncode == 1 and "is being written by another run" in second.stderr and "name=" in second.stderr
    subprocess.run([sys.executable, "-c", code, str(first.path)], check=True)


def test_locking_clears_what_a_killed_process_left(tmp_path):
    folder = RunFolder(tmp_path, writes=True)
    (tmp_path / "evaluations").mkdir()
    amending = tmp_path / ".amendments.jsonl.123.tmp"  # of another process, which may be alive
    amending.touch()
    for name in (".step_00000002.tmp", ".step_00000001.old"):
        (folder.checkpoints / name).mkdir(parents=True)
        (folder.checkpoints / name / "rank_00000.safetensors").write_bytes(b"half")
    for name in (".step_00000001.ckpt.123.tmp", ".SHA256SUMS.123.tmp"):
        (folder.checkpoints / name).write_bytes(b"half")
    (folder.checkpoints / ".last.123.tmp").symlink_to("step_00000001")
    for name in ("config.yaml", "tokenizer.json", "metrics.csv", "summary.json"):
        (tmp_path / f".{name}.123.tmp").touch()
    with folder.lock():
        assert not list(folder.checkpoints.iterdir())
        assert {path.name for path in tmp_path.iterdir()} == {
            *("checkpoints", "evaluations", "lock", ".running.lock"),
            amending.name,
        }


def test_events_are_lines_of_json(tmp_path):
    folder = RunFolder(tmp_path, writes=True)
    folder.event("saved", step=3)
    folder.event("stopped", step=4, signal="SIGTERM")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("saved", 3), ("stopped", 4)]


@pytest.mark.parametrize("writes", [True, False])
def test_only_rank_0_writes(tmp_path, writes):
    folder = RunFolder(tmp_path / "run", writes=writes)
    with folder.lock():
        folder.event("started")
    assert (tmp_path / "run").exists() == writes
