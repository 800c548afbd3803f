"""benchmarks/: the one command, what it keeps, and that contenders compute the same."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import growth, learning, levers, training
from gptlab import compose
from gptlab.training import loop

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
CLOSED = "error: standard output was closed before the end\n"
TOY = training.SIZES["cpu"]["toy"]

# Runs the command over benchmarks of its own: what stands in the folder that is given.
DRIVER = """
import signal, sys
from pathlib import Path
from benchmarks import __main__ as command
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
command.FOLDER = Path(sys.argv[1])
command.machine.describe = lambda: "a machine"
command.BENCHMARKS = {path.stem: command.Benchmark(1, options=()) for path in sorted(command.FOLDER.glob("*.py"))}
command.finish(lambda: command.main(sys.argv[2:]))
"""


def start(folder: Path, *typed: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", DRIVER, str(folder), "--to", str(folder / "results"), *typed]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *typed: str) -> subprocess.CompletedProcess:
    process = start(folder, *typed)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refusal(capsys, *typed: str) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(typed)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_script_is_known():
    scripts = {name for name, text in SCRIPTS.items() if "argparse.ArgumentParser(" in text} - {"__main__"}
    assert scripts == set(command.BENCHMARKS)


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_options_that_are_handed_on_are_those_of_the_script(name):
    options = set(re.findall(r'add_argument\("--([\w-]+)"', SCRIPTS[name]))
    found, shared = command.BENCHMARKS[name], {option.replace("_", "-") for option in command.OPTIONS}
    assert {option.replace("_", "-") for option in found.options} == options & shared
    assert {argument[2:] for argument in found.arguments if argument.startswith("--")} <= options


def test_the_default_selection_is_short_and_kills_nothing():
    default = {name: found for name, found in command.BENCHMARKS.items() if found.default}
    assert sum(found.minutes for found in default.values()) < 25
    assert "faults" not in default


def test_listing(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name in command.BENCHMARKS:
        assert f"{command.about(name)}\n" in listed
    assert '"""' not in listed


def test_a_wrong_name_is_answered_with_the_known_ones(capsys):
    said = refusal(capsys, "traning")
    assert "traning" in said and "did you mean training?" in said
    assert ", ".join(command.BENCHMARKS) in said


def test_an_option_that_a_benchmark_lacks_is_refused(capsys):
    assert "--rounds means nothing to memory" in refusal(capsys, "training", "memory", "--rounds", "2")
    assert "--nanogpt means nothing to data; it is for training" in refusal(capsys, "data", "--nanogpt", "x")
    assert "name one" in refusal(capsys, "data", "saving", "--", "--megabytes", "1")
    assert "at least 1" in refusal(capsys, "data", "--rounds", "0")


def test_results_are_kept_of_all_and_added_to_on_the_same_day(tmp_path):
    (tmp_path / "good.py").write_text("import sys\nprint('measured', *sys.argv[1:])")
    (tmp_path / "bad.py").write_text("print('begun')\nraise SystemExit(3)")
    ended = run(tmp_path)
    assert ended.returncode == 1 and "bad failed" in ended.stderr
    assert "measured\n" in ended.stdout, "the output passes through"
    good, bad = (next((tmp_path / "results").glob(f"*-{name}.md")) for name in ("good", "bad"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-good\.md", good.name)
    assert "a machine" in good.read_text() and "```text\nmeasured\n```" in good.read_text()
    assert "**failed with exit code 3**" in bad.read_text() and "begun" in bad.read_text()
    first = good.read_text()
    assert run(tmp_path, "good", "--", "--corpus", str(tmp_path / "corpus")).returncode == 0
    assert good.read_text().startswith(first)
    added = good.read_text()[len(first) :]
    heading, _, output = added.partition("```text")
    assert "python benchmarks/good.py --corpus ...\n" in heading and str(tmp_path) not in heading
    assert "by `python -m benchmarks --to ... good -- --corpus ...`" in heading
    assert "measured --corpus" in output


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    interrupt = "import os, signal, time\nprint('half')\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    (tmp_path / "a.py").write_text("print('whole')")
    (tmp_path / "b.py").write_text(interrupt)
    (tmp_path / "c.py").write_text("print('never')")
    assert run(tmp_path).returncode == 130
    results = {path.stem[-1]: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert set(results) == {"a", "b"}
    assert "whole" in results["a"] and "interrupted" not in results["a"]
    assert "half" in results["b"] and "**interrupted**" in results["b"]


def test_output_that_is_read_no_further_stops_the_benchmark_and_keeps_what_was_measured(tmp_path):
    (tmp_path / "a.py").write_text("import time\nfor i in range(1200): print(f'line {i}'), time.sleep(0.05)")
    (tmp_path / "b.py").write_text("print('never')")
    with start(tmp_path) as process:
        assert process.stdout.readline() == "== a\n" and process.stdout.readline() == "line 0\n"
        process.stdout.close()  # as `| head -2` does
        assert process.stderr.read() == CLOSED and process.wait(60) == 1
    (result,) = (tmp_path / "results").iterdir()
    assert "**interrupted**" in result.read_text() and "line 0\nline 1\n" in result.read_text()


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_each_script_leaves_its_end_to_one_function(name):
    assert SCRIPTS[name].endswith('if __name__ == "__main__":\n    from ending import finish\n\n    finish(main)\n')


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        ("print('measured')", 1, CLOSED),
        ("print('measured'), sys.exit(0)", 1, CLOSED),
        ("sys.argv.append('--help'), print('usage'), sys.exit(0)", 1, ""),
        ("signal.signal(signal.SIGINT, signal.default_int_handler), signal.raise_signal(signal.SIGINT)", 130, ""),
        ("3", 3, ""),
        ("sys.exit('error: failed')", 1, "error: failed\n"),
    ],
)
def test_a_script_ends_without_a_traceback(main, code, said):
    program = f"import signal, sys; from benchmarks.ending import finish; finish(lambda: ({main}))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, said)


def test_contenders_compute_the_same_losses_and_one_that_fails_leaves_the_others(tmp_path):
    contenders = [
        training.Contender("gptlab", "gptlab"),
        training.Contender("transformers", "transformers"),
        training.Contender("nanoGPT", "nanogpt", options={"nanogpt": str(tmp_path)}),  # where there is none
    ]
    found = training.measure(contenders, training.Conditions(size=TOY, rounds=1, steps=2, threads=1), tmp_path)
    ours, theirs, missing = found.values()
    assert ours.failure == theirs.failure == ""
    assert len(ours.losses) == training.WARM_UP_STEPS
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    assert ours.losses[-1] < ours.losses[0] - 0.05, "the steps change the weights"
    assert all(len(m.tokens_per_second) == 1 and m.tokens_per_second[0] > 0 for m in (ours, theirs))
    assert all(100 * 2**20 < m.peak_bytes < 4 * 2**30 for m in (ours, theirs)), "torch alone takes more than 100 MiB"
    assert "No module named 'model'" in missing.failure
    shown = training.table(contenders, found)
    assert "agrees" in shown and "DIFFERS" not in shown
    assert "failed: ModuleNotFoundError" in shown
    theirs.losses[1] += 0.002
    assert "DIFFERS (by 2e-03)" in training.table(contenders, found)


def test_ratios_are_of_the_same_round():
    contenders = [training.Contender(name, name) for name in ("gptlab", "slow", "close")]
    rates = {"gptlab": [100.0, 10.0, 60.0], "slow": [50.0, 5.0, 20.0], "close": [80.0, 8.0, 60.0]}
    found = {name: training.Measured(rates[name], [1.0, 1.0, 1.0], 2**20) for name in rates}
    lines = training.table(contenders, found).splitlines()
    assert lines[2].split()[:6] == ["slow", "20", "5", "to", "50", "2.00"]
    assert lines[3].split()[:6] == ["close", "60", "8", "to", "80", "1.25"]
    assert lines[-1].endswith("the best peer (close): 1.25")


def test_absent_peers_are_listed_with_how_to_get_them(monkeypatch):
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    contenders, absent = training.find_contenders(None, "python", None, device="cpu")
    assert [c.name for c in contenders] == ["gptlab", "litgpt"]
    assert "git clone" in absent["nanoGPT"] and "pip install transformers" in absent["transformers"]
    contenders, absent = training.find_contenders(Path("x"), None, "python", device="cuda")
    assert [c.name for c in contenders] == ["gptlab", "nanoGPT", "transformers"] and list(absent) == ["litgpt"]


def test_growth_counts_what_a_token_costs_and_draws(tmp_path, monkeypatch):
    point = growth.Point(n_layer=2, d_model=64, vocab_size=128, context_length=16, n_sequences=2)
    products = 2 * 12 * 64**2 + 128 * 64  # of weights: a multiply-add each, forward and twice backward
    assert point.flops_per_token == 6 * products + 3 * 2 * 2 * 2 * 16 * 64  # and scores and values of two blocks
    monkeypatch.setattr(growth, "WIDTH_OF_PRODUCT", 64)
    axis = growth.Axis("context", lambda point: point.context_length, (point,))
    flops = growth.measure([axis], rounds=1)
    assert axis.bounds == [flops / point.flops_per_token] and axis.medians[0] > 0
    assert f"{axis.medians[0] / axis.bounds[0]:.0%}" in growth.table([axis])
    growth.draw([axis] * 4, flops, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def learned_with(*overrides: str):
    """The config of a run of benchmarks/learning.py, without where it is."""
    config = compose(*overrides, "data.path=FILE", "run_dir=runs/one")
    return replace(config, model_tag="", data_tag="")


def test_each_ingredient_of_the_speedrun_changes_its_config():
    whole = learned_with(learning.EXPERIMENT)
    for name, changes in learning.WITHOUT.items():
        assert learned_with(learning.EXPERIMENT, *changes) != whole, name
    adamw = learned_with(*learning.WITH_ADAMW)
    assert adamw.optimizer.type == "adamw"
    assert replace(adamw, optimizer=whole.optimizer, trainer=whole.trainer) == whole, "nothing else differs"


def test_the_target_is_reached_at_the_first_validation_that_is_low_enough():
    rows = [(768, 1.0, 2.0), (1536, 2.0, learning.TARGET), (2304, 3.0, 1.9), (3072, 4.0, 1.7)]
    assert learning.crossing(rows) == rows[1]
    assert learning.crossing(rows[:1]) is None


def test_a_folder_without_nanogpt_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["learning.py", "--nanogpt", str(tmp_path)])
    with pytest.raises(SystemExit):
        learning.main()
    assert f"--nanogpt: {tmp_path / 'model.py'} is not there" in capsys.readouterr().err


QUICK_LEVERS = {name: change for name, change in levers.LEVERS.items() if name != "blocks compiled"}


def test_no_lever_changes_what_is_computed(monkeypatch):
    monkeypatch.setattr("gptlab.nn.loss.CHUNK_ELEMENTS_CPU", 2**14)  # several chunks at this size too
    _, first = levers.measure(levers.build(TOY), {"as it is": None, **QUICK_LEVERS}, rounds=0)
    loss, norm, _ = first.pop("as it is")
    for name, found in first.items():
        assert found[:2] == pytest.approx((loss, norm), rel=1e-5), name


def test_a_lever_is_back_where_it_was_after_its_turn():
    bench = levers.build(TOY)
    before = [block.attn._small for block in bench.model.blocks], bench.optimizer.param_groups[0]["fused"]
    for change in QUICK_LEVERS.values():
        with levers.moved(bench, change):
            pass
    assert ([block.attn._small for block in bench.model.blocks], bench.optimizer.param_groups[0]["fused"]) == before


def test_saving_and_seeking_run():
    """Of the default selection these two call what a run calls inside; at a size that takes no time."""
    how = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 120}
    commands = (
        [str(ROOT / "benchmarks" / "saving.py"), "--model", "toy", "--rounds", "1"],
        ["-c", f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import data; data.seeking(1)"],
    )
    for arguments, said in zip(commands, ("asynchronous save", "scheduled mixture"), strict=True):
        done = subprocess.run([sys.executable, *arguments], **how)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_what_startup_times_is_there():
    named = set(re.findall(r"\bloop\.(\w+)", SCRIPTS["startup"]))
    assert {"train", "prepare_run"} <= named <= set(dir(loop))
