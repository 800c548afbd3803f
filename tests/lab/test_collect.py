"""Runs read from their folders: which there are, how they stand, and what differs."""

import csv
import os

import pytest
from small_runs import small_run, write_trained

from gptlab.config import to_plain
from gptlab.errors import UserError
from gptlab.files import is_locked, locked
from gptlab.lab.collect import collect, differing_keys, groups
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig
from gptlab.runs.folder import RunFolder
from gptlab.training.config import AdamWConfig, MuonConfig, TrainerConfig
from gptlab.training.loop import train

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}


def test_a_record_is_what_the_run_wrote(tmp_path):
    run = train(small_run(tmp_path / "run", seed=7, name="mine"))
    (record,) = collect([tmp_path / "run"])
    assert (record.name, record.state, record.seed, record.steps, record.tokens) == ("mine", "finished", 7, 10, 1280)
    with open(run.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(record.rows) == [name for name in rows[0] if any(row[name] for row in rows)]
    for name, values in record.rows.items():
        assert values == [float(row[name]) if row[name] else None for row in rows]
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert len(losses) == 3 and record.last("val/loss") == losses[-1] and record.best("val/loss") == min(losses)
    assert record.config["optimizer.lr"] == 1e-2 and record.config["model.type"] == "decoder"
    assert record.config["trainer.precision"] == "32-true"  # which the config leaves to the machine
    assert record.flops == record.summary["flops_per_token"] * 1280 > 0
    assert record.last("nothing") is record.best("nothing") is None
    assert to_plain(run.config)["trainer"]["precision"] is None


def test_seconds_add_up_by_the_measured_speed(tmp_path):
    rates = (None, None, 500.0, None, 250.0)
    rows = [
        {"step": i, "tokens": 100 * i, "train/loss": 1.0} | ({"perf/tokens_per_second": rate} if rate else {})
        for i, rate in enumerate(rates, 1)
    ]
    write_trained(tmp_path / "a", rows=rows)
    write_trained(tmp_path / "b", rows=[{"step": 1, "tokens": 100, "train/loss": 1.0}])
    a, b = collect([tmp_path])
    assert a.seconds() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.2]) and b.seconds() == [None]
    assert a.best("train/loss") == 1.0


def test_the_best_accuracy_is_the_highest(tmp_path):
    rows = [
        {"step": i, "tokens": i, "val/accuracy": value, "val/loss": -value}
        for i, value in enumerate((0.2, 0.9, 0.5), 1)
    ]
    write_trained(tmp_path / "a", rows=rows)
    (record,) = collect([tmp_path / "a"])
    assert record.best("val/accuracy") == 0.9 and record.last("val/accuracy") == 0.5 and record.best("val/loss") == -0.9


def test_how_runs_stand(tmp_path):
    write_trained(tmp_path / "0 finished")
    write_trained(tmp_path / "1 stopped early", summary={"stopped_early": True})
    write_trained(tmp_path / "2 interrupted", summary={"finished": False})  # trainer.max_time
    write_trained(tmp_path / "3 interrupted", summary={}, events=[{"event": "stopped", "step": 1}])
    write_trained(tmp_path / "4 failed", summary={}, events=[{"event": "failed", "step": 1, "error": "Spike: nan"}])
    write_trained(tmp_path / "5 interrupted", [], summary={})  # killed before its first step
    write_trained(tmp_path / "6 running", summary={})
    with RunFolder(tmp_path / "6 running", writes=True).lock():
        records = collect([tmp_path])
        for record in records:
            assert record.state == record.folder.name[2:], record.name
    assert [record.is_finished for record in records] == [True, True, False, False, False, False, False]
    assert records[5].steps == records[5].tokens == 0 and records[5].last("val/loss") is None
    assert collect([tmp_path / "6 running"])[0].state == "interrupted"


def test_who_looks_whether_a_run_is_going_does_not_turn_it_away(tmp_path):
    lock = tmp_path / "lock"
    assert not is_locked(lock) and not lock.exists()
    with locked(lock):
        assert is_locked(lock)
    assert not is_locked(lock)
    if os.name != "nt":
        import fcntl
        import threading

        descriptor = os.open(lock, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # as a look does
        threading.Timer(0.05, os.close, [descriptor]).start()
        with locked(lock, wait=False):
            assert is_locked(lock)


def test_folders_globs_and_sweeps_give_each_run_once_in_a_persons_order(tmp_path, monkeypatch):
    sweep = tmp_path / "a sweep [x]"
    for seed in (10, 2, 1):
        write_trained(sweep / f"seed={seed}", seed=seed)
    write_trained(sweep / "seed=1" / "checkpoints" / "not another run")
    (sweep / "seed=1" / "wandb" / "files").mkdir(parents=True)
    (sweep / "seed=1" / "wandb" / "files" / "config.yaml").write_text("a: 1\n")
    (sweep / "multirun.yaml").write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    for patterns in (["a sweep [x]"], ["a sweep*/*"], ["**"], ["a sweep [x]", str(sweep / "seed=2"), "a*"]):
        assert [record.seed for record in collect(patterns)] == [1, 2, 10], patterns
    assert [record.seed for record in collect([sweep / "seed=10", sweep / "seed=1"])] == [10, 1]
    assert [record.name for record in collect([sweep])] == ["seed=1", "seed=2", "seed=10"]


def test_names_are_unique_and_as_short_as_can_be(tmp_path):
    for place in ("one/x/run", "two/x/run", "two/y/run", "two/other"):
        write_trained(tmp_path / place)
    assert [record.name for record in collect([tmp_path])] == ["one/x/run", "other", "two/x/run", "y/run"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere", r"nowhere does not exist; name a run folder"),
        ("empty", r"empty holds no run: .*metrics\.csv; name a run folder"),
        ("file", r"file is a file; name a run folder"),
        ("no*", r"no\* matches nothing"),
        ("", r"the name of a run is empty"),
        ("e*", r"e\* matches no run folder"),
        (None, r"no runs to compare; name run folders"),
    ],
)
def test_what_holds_no_run_is_refused(tmp_path, monkeypatch, pattern, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        collect([] if pattern is None else [pattern])


def test_damaged_files_are_named(tmp_path):
    for name, text in (("config.yaml", "seed: [1\n"), ("summary.json", "{"), ("inputs.json", "{")):
        run = write_trained(tmp_path / name)
        (run / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            collect([run])
    run = write_trained(tmp_path / "cut off")
    with open(run / "metrics.csv", "a") as file:
        file.write("3,38")  # being written while it is read
    assert collect([run])[0].steps == 2


def test_a_run_of_a_plugin_is_read_without_it(tmp_path):
    run = write_trained(tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("plugins: []", "plugins: [far_away]").replace("lr: 0.01", "lr: 0.5"))
    (record,) = collect([run])
    assert record.config["optimizer.lr"] == 0.5


def test_groups_are_what_differs_but_not_seeds(tmp_path):
    for seed in (1, 2):
        for lr in (1e-3, 3e-3):
            options = {
                "optimizer": AdamWConfig(lr=lr),
                "seed": seed,
                "model_tag": f"tag{seed}",
                "micro_batch_size": seed,
            }
            trainer = TrainerConfig(accelerator="cpu", val_check_interval=seed)
            write_trained(tmp_path / f"{seed}-{lr}", trainer=trainer, **options)
    records = collect([tmp_path])
    assert differing_keys(records) == ["optimizer.lr"]
    found = {label: [record.seed for record in runs] for label, runs in groups(records).items()}
    assert found == {"optimizer.lr=0.001": [1, 2], "optimizer.lr=0.003": [1, 2]}
    alone = collect([tmp_path / "1-0.001"])
    assert list(groups(alone)) == ["tag1-custom"] and differing_keys(alone) == []


def test_keys_that_another_type_lacks_are_no_differences(tmp_path):
    write_trained(tmp_path / "a", model=DecoderConfig(**SIZES), optimizer=AdamWConfig(lr=1e-2))
    write_trained(tmp_path / "b", model=EncoderConfig(**SIZES), optimizer=MuonConfig(lr=1e-2))
    found = differing_keys(collect([tmp_path]))
    assert found[0] == "model.type" and found[-1] == "optimizer.type"
    assert not {"model.qk_norm", "optimizer.momentum", "optimizer.adamw_lr"} & set(found)  # of one type alone
    write_trained(tmp_path / "c", model=EncoderConfig(**SIZES), optimizer=MuonConfig(lr=1e-2, momentum=0.5))
    assert differing_keys(collect([tmp_path])) == [*found, "optimizer.momentum"]


def test_data_and_amendments_are_differences_too(tmp_path):
    taken = [{"event": "amended", "number": 1, "step": 5, "overrides": {"optimizer.lr": 1e-4}}]
    write_trained(tmp_path / "a", content="a" * 64)
    write_trained(tmp_path / "b", content="b" * 64)
    write_trained(tmp_path / "c", content="b" * 64, events=taken)
    records = collect([tmp_path])
    assert differing_keys(records) == ["data.content", "amendments"]
    assert [record.group for record in records] == [
        "data.content=aaaaaaaa",
        "data.content=bbbbbbbb",
        "data.content=bbbbbbbb, amendments=step 5: optimizer.lr=0.0001",
    ]


def test_a_preset_stands_for_many_keys_where_it_says_all(tmp_path):
    small = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
    large = {"n_layer": 3, "n_head": 4, "d_model": 64, "context_length": 32, "bias": True}
    for tag, sizes in (("small", small), ("large", large)):
        for lr in (1e-3, 2e-3):
            write_trained(
                tmp_path / f"{tag}-{lr}", model=DecoderConfig(**sizes), model_tag=tag, optimizer=AdamWConfig(lr=lr)
            )
    assert list(groups(collect([tmp_path]))) == [
        f"model={t}, optimizer.lr={lr}" for t in ("large", "small") for lr in (0.001, 0.002)
    ]
    # The preset with another key changed does not say all.
    changed = DecoderConfig(**{**small, "n_layer": 4})
    write_trained(tmp_path / "changed", model=changed, model_tag="small", optimizer=AdamWConfig(lr=1e-3))
    labels = [record.group for record in collect([tmp_path])]
    assert len(set(labels)) == 5 and sum("model.n_layer=4" in label for label in labels) == 1
