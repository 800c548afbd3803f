"""A run trained again from its folder: equal where the same computes, and what is said where not."""

import json
import re
import shutil

import pytest
from small_runs import small_run

from gptlab.cli import reproduce as command
from gptlab.config import to_plain
from gptlab.errors import UserError
from gptlab.lab.agreement import first_beyond, first_difference, tolerance_at
from gptlab.lab.recompute import config_again, copy_record
from gptlab.lab.reproduce import reproduce
from gptlab.runs import amendments
from gptlab.runs.folder import RunFolder, read_events, read_metrics
from gptlab.runs.run import open_run
from gptlab.training.config import CallbacksConfig, TrainerConfig
from gptlab.training.loop import train
from gptlab.training.spikes import ROLLED_BACK


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced") / "a run"
    folder.mkdir()
    amendments.add(RunFolder(folder, writes=True), {"optimizer.lr": 5e-3})
    options = {"accelerator": "cpu", "devices": 1, "val_check_interval": 5, "enable_progress_bar": False}
    train(
        small_run(
            folder,
            trainer=TrainerConfig(**options, enable_model_summary=False),
            callbacks=CallbacksConfig(sample=None, plot=False, forecast=False),
        )
    )
    return folder


def test_a_run_is_reproduced_bit_for_bit_and_the_command_may_be_repeated(trained, capsys):
    again = trained.with_name("a run-again")
    for _ in range(2):
        assert command.main([str(trained)]) == 0
        shown = capsys.readouterr()
        assert "nothing differs here" in shown.err and "every number equal bit for bit" in shown.err
        assert "its amendments are applied at the same steps" in shown.err
        assert shown.out.splitlines()[0] == "10 steps, all metrics equal bit for bit"
        assert shown.out.splitlines()[-1].startswith(f"{trained}: reproduced bit for bit")
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run / "metrics.csv")]
        for run in (trained, again)
    ]
    assert rows[0] == rows[1] and rows[0][1]["train/lr"] == pytest.approx(5e-3 / 3)
    with pytest.raises(UserError, match="holds a run that is no repetition"):
        reproduce(again, trained)
    with pytest.raises(UserError, match="to= is empty"):  # not this folder
        reproduce(trained, "")
    with pytest.raises(UserError, match=r"cannot be made \(.+\); name another folder with to=FOLDER"):
        reproduce(trained, trained / "config.yaml" / "again")
    with pytest.raises(UserError, match="is the run itself"):
        reproduce(trained, trained)


def test_another_environment_is_named_and_a_claim_that_does_not_hold_is_too(trained, tmp_path, capsys):
    claimed = shutil.copytree(trained, tmp_path / "claimed")
    found = json.loads((claimed / "environment.json").read_text())
    found[0]["torch"]["version"] = "1.0"
    (claimed / "environment.json").write_text(json.dumps(found))
    lines = (claimed / "metrics.csv").read_text().splitlines()
    cells = lines[8].split(",")
    assert cells[0] == "7"
    cells[2] = repr(float(cells[2]) * (1 + tolerance_at(7, None) / 2))
    lines[8] = ",".join(cells)
    (claimed / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert command.main([str(claimed), f"to={tmp_path / 'again'}", "output=json"]) == 0
    shown = capsys.readouterr()
    assert "differs here: torch: 1.0 there" in shown.err and re.search(r"agree to \S+ of themselves", shown.err)
    plain = json.loads(shown.out)
    assert plain["reproduced"] and not plain["bit_for_bit"] and plain["equal_weights"] == plain["weights"] > 2
    assert 0 < plain["largest_difference"]["train/loss"] < 1e-3
    cells[2] = repr(float(cells[2]) * 1.01)
    lines[8] = ",".join(cells)
    (claimed / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert command.main([str(claimed), f"to={tmp_path / 'again'}"]) == 1
    assert "NOT reproduced: step 7: train/loss" in capsys.readouterr().out.splitlines()[-1]


def test_a_config_to_be_carried_out_again_leaves_the_runs_own_as_it_is(trained, tmp_path):
    run = open_run(trained)
    before = to_plain(run.config)
    again = config_again(run, tmp_path / "again", None)
    assert again.run_dir != run.config.run_dir and to_plain(run.config) == before
    with pytest.raises(UserError, match="no layout that can be used"):
        config_again(run, tmp_path / "again", {"layout": {"world_size": 1}})


def test_only_what_was_rolled_back_by_then_is_taken_over(tmp_path):
    record = RunFolder(tmp_path / "run", writes=True)
    record.path.mkdir()
    for to, skipped in ((4, 2), (8, 5)):
        record.event(ROLLED_BACK, **{"from": to + 2, "to": to, "loss": 9.0, "skipped_steps": skipped, "in_a_row": 1})
    for start, expected in ((None, []), (3, []), (4, [4]), (7, [4]), (8, [4, 8])):
        folder = tmp_path / str(start)
        folder.mkdir()
        copy_record(record.path, folder, start)
        assert [event["to"] for event in read_events(folder)] == expected


def test_what_is_measured_beside_training_may_be_measured_elsewhere():
    then, now = {1: {"step": 1, "train/loss": 2.0, "val/loss": 3.0}}, {1: {"step": 1, "train/loss": 2.0}}
    assert first_difference(then, now) is first_difference(now, then) is None
    assert "train/loss" in str(first_difference(then, {1: {"step": 1, "val/loss": 3.0}}))
    assert "val/loss" in str(first_difference(then, {1: then[1] | {"val/loss": 3.5}}))


def test_losses_may_go_apart_with_the_steps_and_other_numbers_as_they_will():
    recorded = {step: {"step": step, "train/loss": 2.0, "val/accuracy": 0.5} for step in (1, 1000)}
    small = tolerance_at(1, "32-true")
    assert 0 < small < tolerance_at(1000, "32-true") < tolerance_at(1000, "bf16-mixed") <= 0.02
    for step, factor, is_beyond in ((1, 0.9, False), (1, 1.1, True), (1000, 1.1, False)):
        again = {at: dict(row) for at, row in recorded.items()}
        again[step]["train/loss"] += 2.0 * factor * small
        again[step]["val/accuracy"] = 0.0
        found = first_beyond(recorded, again, 0, "32-true")
        assert (found is not None) is is_beyond and (found is None or found.step == step)
