"""benchmarks/gpu.py at its smallest, on the CPU: what it writes, and what it does about what fails."""

import importlib.util
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from small_runs import ROOT
from warm_python import warm_python

PROGRAM = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", PROGRAM)
    module = sys.modules["benchmarks_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The rows by section and name, and the table, of the program's own run."""
    folder = tmp_path_factory.mktemp("results")
    given = [str(PROGRAM), "--device", "cpu", "--to", str(folder), "--sections", "checks,speed,generation"]
    given += ["--minutes", "60"]  # a bound, on a busy machine too
    code = f"import runpy, sys; sys.executable = {warm_python()!r}; sys.argv = {given!r}\n"
    code += f"sys.path.insert(0, {str(PROGRAM.parent)!r})\n"  # as where a script is called
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([warm_python(), "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (lines,), (table,) = folder.glob("*.jsonl"), folder.glob("*.md")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    return {(row["section"], row["name"]): row for row in rows}, table.read_text()


def test_nothing_fails_and_what_needs_cuda_says_so(written):
    rows, table = written
    assert {section for section, _ in rows} == {"environment", "checks", "speed", "generation"}
    assert {row["status"] for row in rows.values()} == {"ok", "not run"}
    missing = [row["why"] for row in rows.values() if row["status"] == "not run"]
    assert importlib.util.find_spec("torchao") is None or not any("torchao" in why for why in missing)
    assert missing.count("needs a CUDA device") > 20
    assert "| 124M: MFU | 55% | not measured |" in table and "tiny shapes, whose times say nothing" in table


def test_checks_have_a_difference_and_what_is_allowed(written):
    rows, table = written
    row = rows["checks", "gpt2: losses in bf16-mixed and float32"]
    assert 0 < row["difference"] < row["allowed"]
    row = rows["checks", "experts: losses in fp8-mixed and bf16-mixed"]
    assert row["status"] == "not run" or 0 < row["difference"] < row["allowed"]
    assert rows["checks", "cross-entropy in chunks: loss and gradients"]["difference"] < 1e-4
    assert "| gpt2: losses in bf16-mixed and float32 | ok | " in table


def test_peers_compute_the_same_loss_from_the_same_weights(written):
    rows, table = written
    own = rows["speed", "gpt124m gptlab, eager, padded vocabulary"]
    peer = rows["speed", "gpt124m transformers, eager, padded vocabulary"]
    assert own["first_loss"] == pytest.approx(peer["first_loss"], abs=5e-3)
    assert own["tokens_per_second"] > 0 and own["mfu"] is None
    assert rows["speed", "gpt124m nanoGPT, eager, padded vocabulary"]["why"] == "needs --nanogpt FOLDER"
    assert f"| {own['name']} | {own['tokens_per_second']:,} | " in table


def test_gptlab_train_is_measured_too(written):
    row = written[0]["speed", "gpt124m gptlab.train, eager, padded"]
    assert row["tokens_per_second"] > 0 and row["last_loss"] < 6


def test_generation_is_measured_by_batch(written):
    assert written[0]["generation", "124M, bf16, greedy, batch 16"]["tokens_per_second"] > 0


def test_a_failure_is_recorded_and_the_rest_goes_on(gpu, tmp_path):
    bench = gpu.Bench("checks", "cuda", time.time() + 10, tmp_path / "rows.jsonl", None)
    bench.run("breaks", lambda: 1 / 0)
    bench.run("too far off", lambda: gpu.within(0.2, 0.1))
    bench.run("not a number", lambda: gpu.within(float("nan"), 0.1))
    bench.run("takes too long", lambda: {}, seconds=1000)
    bench.run("works", lambda: gpu.within(0.05, 0.1))
    rows = [json.loads(line) for line in bench.rows.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["failed", "failed", "failed", "not run", "ok"]
    assert "ZeroDivisionError" in rows[0]["why"] and "1 / 0" in "\n".join(rows[0]["traceback"])
    assert "out of time" in rows[3]["why"]


def test_a_section_whose_process_ends_badly_or_runs_on_is_recorded(gpu, tmp_path, monkeypatch):
    given, rows = Namespace(device="cpu", nanogpt=None), tmp_path / "rows.jsonl"
    program = tmp_path / "program.py"
    monkeypatch.setattr(gpu, "__file__", str(program))
    program.write_text("raise SystemError('an illegal memory access')")
    gpu.carry_out("checks", given, time.time() + 60, rows)
    assert "an illegal memory access" in json.loads(rows.read_text())["why"]
    rows.unlink()
    program.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.5)
    gpu.carry_out("checks", given, time.time(), rows)
    assert "past its time" in json.loads(rows.read_text())["why"]


def test_the_table_compares_with_the_goals(gpu):
    def row(name, rate, mfu=None, status="ok", micro_batch_size=32):
        values = {"tokens_per_second": rate, "mfu": mfu, "micro_batch_size": micro_batch_size}
        return {"section": "speed", "name": name, "status": status, **values}

    rows = [
        row("gpt124m gptlab, eager", 300_000, 0.31),
        row("gpt124m gptlab, compiled", 540_000, 0.561),
        row("gpt124m gptlab, compiled, micro-batch 64", 550_000, 0.559, micro_batch_size=64),  # no peer has it
        row("gpt124m nanoGPT, compiled", 450_000, 0.46),
        row("gpt124m transformers, compiled", 400_000, 0.41),
        {"section": "speed", "name": "gpt124m gptlab, compiled", "status": "not run", "why": "out of time"},
    ]
    table = gpu.markdown(rows, "a title")
    assert "| 124M: MFU | 55% | 56.1% |" in table
    assert "| gpt124m: gptlab's best rate over the best peer's, of equal micro-batches | 1.2 | 1.20 |" in table
    assert "| 1558M: MFU | 60% | not measured |" in table and "out of time" not in table


def test_an_unknown_section_is_refused(tmp_path):
    done = subprocess.run(
        [warm_python(), str(PROGRAM), "--sections", "spead", "--to", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "environment,checks,faults" in done.stderr and not list(Path(tmp_path).iterdir())
