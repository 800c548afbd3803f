"""Every change of a run's record is found: by the hash chain, or where somebody rewrote that too, by training again."""

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from small_runs import overrides_of, small_run, write_text
from small_runs import train as train_command

from gptlab.cli import verify as command
from gptlab.data.sources.config import TextConfig
from gptlab.errors import UserError
from gptlab.files import locked, sha256_of
from gptlab.lab.verify import Outcome, Verification, _all_stretches, verify
from gptlab.runs import amendments, chain, checkpoint
from gptlab.runs.chain import RowChain, entry_head, read_chain
from gptlab.runs.folder import RUNNING_LOCK, RunFolder, read_metrics
from gptlab.runs.tensor_files import write_tensors
from gptlab.training.config import CallbacksConfig, ChainConfig, CheckpointConfig, TrainerConfig
from gptlab.training.loop import train

STEPS = 12


def config_of(folder: Path, **given):
    callbacks = CallbacksConfig(
        checkpoint=CheckpointConfig(every_steps=4, keep_last=2),
        sample=None,
        plot=False,
        forecast=False,
        chain=ChainConfig(every_steps=3),
    )
    text = folder.parent / "text.txt"
    if not text.exists():
        write_text(text, 4000)
    usual = {
        "data": TextConfig(path=str(text), cache_dir=str(folder.parent / "cache")),
        "trainer": TrainerConfig(
            accelerator="cpu",
            devices=1,
            val_check_interval=6,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
        "callbacks": callbacks,
        "budget_steps": STEPS,
    }
    return small_run(folder, **usual | given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was amended before its first step."""
    folder = tmp_path_factory.mktemp("verified") / "a run"
    folder.mkdir()
    amendments.add(RunFolder(folder, writes=True), {"optimizer.lr": 5e-3})
    train(config_of(folder))
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def failures(found: Verification) -> dict[str, str]:
    return {check.what: check.text for check in found.checks if check.outcome is Outcome.failed}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, (path, old)
    path.write_text(text.replace(old, new, 1))


def metric(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    cells = lines[6].split(",")
    assert cells[0] == "5"
    cells[2] = repr(float(cells[2]) - 0.001)
    lines[6] = ",".join(cells)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")


def time_of_a_step(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    at = lines[0].split(",").index("perf/tokens_per_second")
    cells = lines[4].split(",")
    cells[at] = "123456.0"
    lines[4] = ",".join(cells)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")


def drop_line(name: str, number: int):
    def change(run: Path) -> None:
        lines = (run / name).read_text().splitlines(keepends=True)
        del lines[number]
        (run / name).write_text("".join(lines))

    return change


def rewrite_checkpoint(run: Path, prefix: str) -> None:
    """Change one number in a checkpoint and its checksum beside it."""
    path = run / "checkpoints" / f"step_{STEPS - 4:08d}.ckpt"
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {key: value for key, value in file.metadata().items() if key != "shards"}
    key = next(key for key in tensors if key.startswith(prefix) and tensors[key].dim() == 2)
    tensors[key][0, 0] += 1e-3
    path.unlink()  # which may bear another name too
    known = checkpoint._known_sums(path.parent)
    checkpoint.write_sums(path.parent, known | {path.name: write_tensors(path, tensors, metadata)})


def summary(run: Path) -> None:
    content = json.loads((run / "summary.json").read_text())
    content["val/loss"] -= 0.1
    (run / "summary.json").write_text(json.dumps(content, indent=2) + "\n")


CHANGES = {
    "a metric": (metric, "metrics.csv", "step 5 "),
    "a time": (time_of_a_step, "metrics.csv", "is not what was written"),
    "a dropped row": (drop_line("metrics.csv", 4), "metrics.csv", "step 3 .* is missing"),
    "a dropped last row": (drop_line("metrics.csv", -1), "metrics.csv", f"no row of step {STEPS}"),
    "a config value": (lambda run: edit(run / "config.yaml", "beta1: 0.9", "beta1: 0.8"), "config.yaml", "not what"),
    "the seed": (lambda run: edit(run / "config.yaml", "seed: 1337", "seed: 1338"), "run id", "run id"),
    "the tokenizer": (lambda run: edit(run / "tokenizer.json", '"byte"', '"byte" '), "tokenizer.json", "not what"),
    "the inputs": (lambda run: (run / "inputs.json").unlink(), "inputs.json", "missing"),
    "a weight": (lambda run: rewrite_checkpoint(run, "model/"), "step_00000008.ckpt", "step 8"),
    "optimizer state": (lambda run: rewrite_checkpoint(run, "optimizer/"), "step_00000008.ckpt", "step 8"),
    "an amendment": (lambda run: edit(run / "amendments.jsonl", "0.005", "0.006"), "amendments", "amendment 1 "),
    "a dropped amendment": (drop_line("amendments.jsonl", 0), "amendments", "not in amendments"),
    "an event": (
        lambda run: edit(run / "events.jsonl", '"event": "validated"', '"event": "sampled"'),
        "events.jsonl",
        "",
    ),
    "a dropped event": (drop_line("events.jsonl", 3), "events.jsonl", "line"),
    "the environment": (
        lambda run: edit(run / "environment.json", '"torch"', '"tensor"'),
        "environment.json",
        "not what",
    ),
    "the summary": (summary, "summary.json", "not what"),
    "no summary": (lambda run: (run / "summary.json").unlink(), "summary.json", "missing"),
    "the chain": (lambda run: edit(run / "chain.jsonl", '"step": 6', '"step": 7'), "chain", "does not follow"),
    "an entry": (drop_line("chain.jsonl", 4), "chain", "line 5 "),
    "the end of the chain": (drop_line("chain.jsonl", -1), "chain", "does not end with that"),
    "no chain": (lambda run: (run / "chain.jsonl").unlink(), "chain", "missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_named(copy, name):
    change, what, text = CHANGES[name]
    change(copy)
    found = verify(copy, segments=0)
    assert not found.is_confirmed and found.verdict().startswith("NOT what it claims to be: ")
    assert re.search(text, failures(found)[what]), found.text()


def test_an_unchanged_run_is_confirmed_and_taken_again_bit_for_bit(trained, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*")}
    assert command.main([str(trained), "segments=4"]) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in trained.rglob("*")} == before
    *_, head, verdict = capsys.readouterr().out.splitlines()
    entries = read_chain(trained).entries
    assert head == f"chain head {entries[-1]['head']}"
    # From 0 to 3 and 4, and from 8, the only other checkpoint before the end, to 9 and 12.
    assert "8 of 12 steps (66.7%) taken again, equal bit for bit" in verdict and "what it claims to be" in verdict
    heads = [entries[5]["head"][:16], "0" * 16]
    for published, confirmed in zip(heads, (True, False), strict=True):
        assert verify(trained, segments=0, head=published).is_confirmed is confirmed
    for no_head in ("", "head", entries[5]["head"][:7]):
        with pytest.raises(UserError, match="is no head of a hash chain; give the 8 hexadecimal digits"):
            verify(trained, segments=0, head=no_head)


def tokens_of(run: Path) -> Path:
    (path,) = (run.parent / "cache").glob("*/train.bin")
    return path


def change_token(path: Path, *, header: bool) -> None:
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    if header:  # as if it had been prepared so
        length = struct.unpack_from("<I", content, 12)[0]
        about = json.loads(content[20 : 20 + length]) | {"checksum": hashlib.sha256(content[4096:]).hexdigest()}
        text = json.dumps(about).encode()
        assert len(text) == length
        content[20 : 20 + length] = text
        struct.pack_into("<I", content, 16, zlib.crc32(text))
    path.write_bytes(content)


@pytest.mark.parametrize("header", [False, True])
def test_a_changed_token_is_found(trained, header):
    path = tokens_of(trained)
    before, times = path.read_bytes(), path.stat()
    try:
        change_token(path, header=header)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        found = verify(trained, segments=0)
    finally:
        path.write_bytes(before)
    assert "train" in failures(found)["data"] and not found.is_confirmed
    assert np.memmap(path, dtype="<u2", mode="r", offset=4096).size > 100


def forge(run: Path) -> None:
    """Write the chain again so that it seals what is there now, as somebody would who knows how it is made."""
    heads, rows = {-1: chain.BEGINNING}, RowChain()
    for row in read_metrics(run / "metrics.csv"):
        heads[int(row["step"])] = rows.add(row)
    lines, head = [], chain.BEGINNING
    for entry in read_chain(run).entries:
        content = {key: value for key, value in entry.items() if key != "head"}
        if "rows" in content:
            row = -1 if content["row"] is None else content["row"]
            steps = list(range(row + 1 - len(content.get("tags", "")) // 8, row + 1))
            content["rows"] = heads[row]
            if "tags" in content:
                content["tags"] = "".join(heads[step][:8] for step in steps)
        if content["entry"] in (chain.STARTED, chain.FINISHED):
            content["files"] = {name: sha256_of(run / name) for name in content["files"]}
        head = entry_head(head, content)
        lines.append(json.dumps({**content, "head": head}, sort_keys=True) + "\n")
    (run / "chain.jsonl").write_text("".join(lines))


def test_a_chain_that_was_rewritten_is_found_out_by_training_again_and_by_its_published_head(copy):
    published = read_chain(copy).entries[-1]["head"]
    lines = (copy / "metrics.csv").read_text().splitlines()
    cells = lines[3].split(",")
    cells[2] = repr(float(cells[2]) - 1e-6)  # of step 2, far below what any plot shows
    (copy / "metrics.csv").write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    forge(copy)
    assert "of another chain" in failures(verify(copy, segments=0))["step_00000008.ckpt"], "checkpoints name its head"
    shutil.rmtree(copy / "checkpoints")
    assert verify(copy, segments=0).is_confirmed, "nothing in the folder contradicts it"
    assert "published head" in failures(verify(copy, segments=0, head=published))
    found = verify(copy, segments=1)
    assert "step 2: train/loss" in failures(found)["steps 1 to 3"] and not found.is_confirmed


def test_a_run_that_was_killed_goes_on_with_its_chain(tmp_path):
    write_text(tmp_path / "text.txt")
    more = {
        "callbacks.checkpoint.every_steps": 4,
        "callbacks.chain.every_steps": 2,
        "callbacks.checkpoint.keep_last": 3,
    }
    overrides = [*overrides_of(tmp_path / "text.txt", **more), "run_dir=run"]
    driver = tmp_path / "driver.py"
    root = Path(__file__).parents[2]
    driver.write_text(
        "import os, runpy, signal, sys\n"
        "from gptlab.training.module import LanguageModule\n"
        "step = LanguageModule.training_step\n"
        "def killed(self, *given):\n"
        "    if self.finished_steps == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *given)\n"
        "LanguageModule.training_step = killed\n"
        f"sys.argv[0] = {str(root / 'train.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = train_command(overrides, tmp_path, program=driver)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with open(tmp_path / "run" / "chain.jsonl", "a") as file:
        file.write('{"entry": "wei')  # a kill in the middle of a write
    found = verify(tmp_path / "run", segments=0)
    assert found.is_confirmed and "a kill cut off" in found.text() and found.n_steps == 6
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write('{"time": "2026')
    done = train_command(overrides, tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = [entry["entry"] for entry in read_chain(tmp_path / "run").entries]
    assert kinds[0] == "started" and "continued" in kinds and kinds[-1] == "finished"
    events = [
        json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines() if line[-1] == "}"
    ]
    assert "continued" in [event["event"] for event in events], "the line that was cut off did not take it along"
    found = verify(tmp_path / "run", segments=6)
    assert found.is_confirmed and found.exact_steps == 10, found.text()


def test_the_chain_goes_on_after_a_stop_and_without_validation(tmp_path):
    folder = tmp_path / "run"
    config = config_of(folder)
    config.data.val_fraction = 0.0
    train(config, until_step=6)
    found = verify(folder, segments=1)
    assert found.is_confirmed and found.exact_steps == 3, found.text()
    assert [e["entry"] for e in read_chain(folder).entries][-1] == "ended"
    amendments.add(RunFolder(folder, writes=True), {"optimizer.lr": 4e-3})
    assert verify(folder, segments=0).is_confirmed, "an amendment waits for the run to go on"
    config.resume = "auto"
    config.callbacks.chain = ChainConfig(every_steps=None)
    train(config)
    found = verify(folder, segments=9)
    assert found.is_confirmed and found.n_steps == STEPS, found.text()


def test_all_steps_are_taken_in_one_stretch_but_where_the_run_went_back():
    ends = [2, 4, 6, 8, 10]
    assert _all_stretches([0, 4], ends, []) == [(0, 10, 5)]
    assert _all_stretches([0, 4], ends, [4]) == [(0, 4, 2), (4, 10, 3)]
    assert _all_stretches([0, 8], ends, [4]) == [(0, 4, 2), (4, 8, 0), (8, 10, 1)]
    assert _all_stretches([0], ends, [4]) == [(0, 4, 2), (4, 10, 0)]
    assert _all_stretches([], ends, [4]) == []


def test_a_run_of_before_there_were_chains_is_checked_as_far_as_can_be(copy):
    (copy / "chain.jsonl").unlink()
    (copy / "environment.json").unlink()
    edit(copy / "config.yaml", "  chain:\n    every_steps: 3\n", "")
    found = verify(copy, segments=1)
    states = {check.what: check.outcome for check in found.checks}
    assert states["chain"] is Outcome.unknown and states["data"] is Outcome.ok and found.is_confirmed
    assert "not checked: chain" in found.verdict()


def test_a_run_that_is_going_on_and_what_is_none_are_refused(copy, tmp_path, capsys):
    with locked(copy / RUNNING_LOCK), pytest.raises(UserError, match="is being trained"):
        verify(copy)
    assert command.main([str(tmp_path)]) == 2 and "config.yaml" in capsys.readouterr().err
    assert command.main([str(copy), str(copy)]) == 2 and "one run folder" in capsys.readouterr().err
    assert command.main([str(copy), "segments=-1"]) == 2 and "segments" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_processes_is_confirmed(tmp_path, strategy):
    write_text(tmp_path / "text.txt")
    more = {"strategy": strategy, "trainer.devices": 2, "callbacks.chain.every_steps": 3}
    done = train_command([*overrides_of(tmp_path / "text.txt", **more), "run_dir=run"], tmp_path)
    assert done.returncode == 0, done.stderr
    found = verify(tmp_path / "run", segments=2)
    assert found.is_confirmed and found.exact_steps == 5, found.text()
