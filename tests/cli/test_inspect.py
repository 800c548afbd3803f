"""`gptlab inspect`, in this process."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import overrides_of, small_run, write_run, write_text

import gptlab
from gptlab.data.sources.config import TextConfig
from gptlab.runs.folder import read_metrics
from gptlab.training.config import CallbacksConfig, CheckpointConfig, SpikeAction, SpikeConfig, TrainerConfig
from gptlab.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_run(tmp_path_factory.mktemp("some runs") / "run")
    train(config)
    return config


def test_a_run_is_shown_with_what_it_read(run, say):
    (result,) = [json.loads(say("step=4", f"run={run.run_dir}", "output=json", "n_shown=8"))]
    expected = gptlab.batch(run, 3)  # after 3 others
    assert [example["tokens"]["ids"] for example in result["examples"]] == expected["tokens"].tolist()
    assert result["n_examples"] == 8 and result["n_targets"] == {"targets": 128}
    out = say("step=4", f"run={run.run_dir}", "n_shown=2")
    assert out.count("--- example ") == 2 and "step 4 of objective=causal_lm: 8 examples with 128 targets" in out
    half = json.loads(say("step=4", f"run={run.run_dir}", "rank=1", "world_size=2", "n_shown=9", "output=json"))
    assert [example["tokens"]["ids"] for example in half["examples"]] == expected["tokens"][4:].tolist()


def test_overrides_are_those_of_training_and_nothing_is_trained(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "my text.txt")
    overrides = [o for o in overrides_of(text) if not o.startswith("run_dir=")]
    # A strategy for many devices changes nothing of what is read.
    out = say("step=1", *overrides, "trainer.devices=8", "strategy=hsdp", "by_token=true", "n_shown=1")
    found = gptlab.batch(gptlab.compose(*overrides), 0)
    first = json.dumps(chr(found["tokens"][0, 0]))
    lines = out[out.index("--- example 1 ") :].splitlines()
    assert lines[2].split()[:2] == ["0", str(int(found["tokens"][0, 0]))] and first in lines[2]
    assert "my text.txt" in out and "document" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["step=0"], "step=0 must be at least 1; 1 is the first update, as in metrics.csv"),
        (["step=x"], "step=x must be a whole number"),
        (["step=1", "model.n_layr=2"], "model.n_layr"),
        (["step=1", "run=none"], "none does not exist; name a run folder"),
        (["step=1", "rank=1"], "rank=1 must be at least 0, and below world_size=1"),
        (["step=1", "-m", "seed=1,2"], "-m is not an option of gptlab inspect"),
        (["step=1", "losses=false"], "losses is about a run that was trained; give run=runs/NAME"),
        (["step=1", "page=x.html"], "unknown option page of gptlab inspect; did you mean html?"),
        (["step=1", "html=x.png"], "html=x.png is no folder and does not end in .html"),
        (["step=1", "html="], "html= is empty; name a file that ends in .html or a folder, such as html=step-1.html"),
        (["coordinate_check=true", "html="], "html= is empty"),
        (["data=stdlib", "sample_mb=1e-7"], "sample_mb=1e-07 must be at least 0.001"),
        (["data=text", "rank=1"], "rank has no effect on the data as a whole; give step=1"),
        (["data=text", "device=cpu"], "device has no effect on the data as a whole; give step=1"),
        (["data=text", "prompt=x"], "prompt is about a model; give run=runs/NAME"),
        (["step=1", "prompt=x"], "prompt has no effect on step="),
        (["run=./none"], "run=./none does not exist; name a run folder, a .ckpt file or a transformers folder"),
        (["run=none", "seed=3"], "seed=3 has no effect on run=none"),
        (["run=none", "by_token=true"], "by_token is about a step of a run; give step=1"),
        (["run=none", "n_shown=5"], "n_shown has no effect on a model"),
        (["run=none", "html=x.png"], "html=x.png is no folder and does not end in .html"),
        (["run=none", "checkpoint=3"], "none does not exist; name a run folder"),
        (["data=text", "data.path=none.txt"], "data.path=none.txt does not exist"),
        (["data=table", "data.path=none.jsonl", "data.response=x", "objective=instruction"], "none.jsonl"),
    ],
)
def test_wrong_arguments_are_answered(say, arguments, message):
    assert message in say(*arguments, expect=2)


def test_a_run_alone_is_a_page_of_its_model_and_names_a_step(run, say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = say(f"run={run.run_dir}")
    page = Path(run.run_dir) / "inspect.html"
    assert f"page in {page}" in out and page.stat().st_size > 10_000
    assert "it has no loss spike; its loss rose most at step=" in out
    assert "the validation split of " in out and "text.txt" in out
    found = json.loads(
        say(f"run={run.run_dir}", "prompt=the and", "checkpoint=last", "html=my page.html", "output=json")
    )
    assert found["page"] == "my page.html" and Path(found["page"]).is_file()
    assert found["tokens"] == list(b"the and") and len(found["attention"]["groups"][0]["layers"]) == 2
    assert found["facts"]["text"] == "prompt: 7 tokens"


def test_a_folder_of_transformers_is_inspected_too(say, tmp_path, monkeypatch):
    from gptlab.cli import convert

    folder, target = write_run(tmp_path / "a run"), tmp_path / "an export"
    assert convert.main([f"from={folder}", f"to={target}"]) == 0
    monkeypatch.chdir(tmp_path)
    out = say(f"run={target}", "prompt=to be")
    assert "page in inspect.html" in out and Path("inspect.html").is_file() and "step=N" not in out


def test_a_run_takes_no_overrides_and_its_own_data_alone(run, say, tmp_path):
    assert "seed=3 has no effect on run=" in say(f"run={run.run_dir}", "seed=3", "step=1", expect=2)
    assert "attempt=2: the run took step 3 once" in say(f"run={run.run_dir}", "step=3", "attempt=2", expect=2)
    assert "has no checkpoint 3" in say(f"run={run.run_dir}", "step=3", "checkpoint=3", expect=2)
    text = Path(run.data.path)
    before = text.read_bytes()
    text.write_bytes(before + b"something new")
    summary = Path(run.run_dir) / "summary.json"
    kept = summary.read_bytes()
    try:
        changed = "was trained on something else: the corpus has changed since"
        assert changed in say(f"run={run.run_dir}", "step=1", expect=2)
        summary.unlink()  # as of a run that was killed
        assert changed in say(f"run={run.run_dir}", "step=1", expect=2)
    finally:
        text.write_bytes(before)
        summary.write_bytes(kept)


def test_the_source_of_each_example_of_a_mixture(say, tmp_path):
    small, capitals = write_text(tmp_path / "small.txt", 4_000), tmp_path / "my capitals.txt"
    capitals.write_text("SOME OTHER TEXT " * 200)
    overrides = [o for o in overrides_of(small) if not o.startswith(("run_dir=", "data=", "data.path="))]
    overrides += ["data=mixture", "data.sources.small=text", f"data.sources.small.path={small}"]
    overrides += [
        "data.sources.big=text",
        f"data.sources.big.path={capitals}",
        "data.weights.big=0.25",
        "tokenizer=byte",
    ]
    out = say("step=6", *overrides, "n_shown=4")
    assert "8 examples with 128 targets; 2 of big, 6 of small" in out
    assert out.count("\nfrom     small, example ") == 3 and out.count("\nfrom     big, example ") == 1
    found = json.loads(say("step=6", *overrides, "output=json", "n_shown=8"))
    for example, source in zip(found["examples"], found["sources"], strict=True):
        text = example["tokens"]["text"]
        assert example["from"] == source and source["name"] == ("big" if text.isupper() else "small")
        whole = (capitals if source["name"] == "big" else small).read_text()
        assert whole[16 * source["example"] :].startswith(text)


@pytest.fixture(scope="module")
def spiked(tmp_path_factory):
    """A run on forty documents in their order, of which number 26 is noise."""
    folder = tmp_path_factory.mktemp("spiked runs")
    (folder / "my texts").mkdir()
    words = write_text(folder / "words.txt", 8_000).read_text()
    for i in range(40):
        (folder / "my texts" / f"{i:02}.txt").write_text(words[150 * i : 150 * i + 127])
    noise = random.Random(0).choices("#$%^&*@~|{}[]<>+=0123456789", k=127)
    (folder / "my texts" / "26.txt").write_text("".join(noise))
    config = small_run(
        folder / "run",
        data=TextConfig(path=str(folder / "my texts"), shuffle=False, val_fraction=0.0),
        budget_steps=35,
        callbacks=CallbacksConfig(checkpoint=CheckpointConfig(every_steps=13, keep_last=9), sample=None, plot=False),
        trainer=TrainerConfig(accelerator="cpu", devices=1, enable_progress_bar=False, limit_val_batches=0),
    )
    return train(config)


def test_the_document_that_made_a_spike_is_found_from_its_step(spiked, say, tmp_path, monkeypatch):
    losses = {row["step"]: row["train/loss"] for row in read_metrics(spiked.path / "metrics.csv") if row["step"]}
    step = max(range(2, 36), key=lambda at: losses[at] - losses[at - 1])
    found = json.loads(say(f"run={spiked.path}", f"step={step}", "output=json"))
    first = found["documents"][0]
    assert (first["document"], first["name"]) == (26, "26.txt")
    assert first["loss"] == max(one["loss"] for one in found["documents"] if one["n_targets"] > 1)
    assert f"loss {losses[step]:.4f}" in found["facts"]["in training"]
    assert f"after step {step - 1}: the weights that" in found["facts"]["token losses under"]
    # These weights are those of the update: without dropout its loss is that of training.
    assert found["loss"] == pytest.approx(losses[step], rel=1e-4)
    page = Path(found["page"])
    assert page == spiked.path / f"step-{step}.html" and "26.txt" in page.read_text()
    out = say(f"run={spiked.path}", f"step={step}", f"html={tmp_path}", "checkpoint=last")
    row = next(line for line in out.splitlines() if "26.txt" in line)
    assert out.index(row) < out.index("27.txt") if "27.txt" in out else True
    assert "after step 35: " in out and "\x1b[" not in out and (tmp_path / f"step-{step}.html").is_file()
    assert "largest loss spike" not in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    colored = say(f"run={spiked.path}", f"step={step}")
    assert "\x1b[48;5;" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in say(f"run={spiked.path}", f"step={step}")


def test_a_rolled_back_step_is_that_of_its_last_attempt(spiked, say, tmp_path):
    # As after a spike at step 28, from which a run goes back to 25.
    run = tmp_path / "run"
    shutil.copytree(spiked.path, run)
    event = {"event": "rolled back", "from": 28, "to": 25, "loss": 4.5, "skipped_steps": 3, "in_a_row": 1}
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    config = spiked.config
    for step, attempt, item in ((27, None, 29), (27, 1, 26), (25, None, 24), (28, 1, 27), (30, None, 32)):
        more = [] if attempt is None else [f"attempt={attempt}"]
        found = json.loads(say(f"run={run}", f"step={step}", "losses=false", "output=json", "n_shown=9", *more))
        ids = [example["tokens"]["ids"] for example in found["examples"]]
        assert ids == gptlab.batch(config, item)["tokens"].tolist()
        assert ("rolled back" in found["facts"]) == (attempt == 1)
        assert found["token_losses"] is None and "page" not in found
    assert "its largest loss spike is step=28" in say(f"run={run}")
    out = say(f"run={run}", "step=28", "attempt=1", "losses=false")
    assert "loss 4.5000, a spike" in out and "attempt: 1 of 2" in out


def test_what_is_in_the_data(say, tmp_path):
    texts = tmp_path / "my texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i:02}.txt").write_text(f"document {i % 25} " * 5)
    out = say("data=text", f"data.path={texts}", "tokenizer=byte", f"html={tmp_path / 'a page.html'}")
    assert "5 documents equal an earlier one" in out and "my texts: all of it" in out
    page = (tmp_path / "a page.html").read_text()
    assert page.count("document ") > 50 and "http" not in page.split("</head>")[1].split("<script>")[0]
    found = json.loads(say("data=text", f"data.path={texts}", "tokenizer=byte", "output=json"))
    n_bytes = sum(len(path.read_bytes()) for path in texts.iterdir())
    assert found["n_tokens"] == n_bytes and found["n_documents"] == 30 and len(found["shown"]) == 3
    part = say("data=text", f"data.path={texts}", "tokenizer=byte", "sample_mb=0.001")
    assert "a sample, " in part and f"about {n_bytes:,} in all" in part


def test_each_time_that_a_run_took_a_step_is_what_it_learned_from(say, tmp_path):
    text = bytearray(write_text(tmp_path / "text.txt", 8_000).read_bytes())
    text[23 * 128 : 24 * 128] = bytes(random.Random(0).choices(b"#$%^&*@~|{}[]<>+=0123456789", k=128))  # step 24
    (tmp_path / "text.txt").write_bytes(text)
    spike = SpikeConfig(action=SpikeAction.rollback, threshold=5.0, window_steps=10, warmup_steps=10, rollback_steps=3)
    config = small_run(
        tmp_path / "run",
        data=TextConfig(path=str(tmp_path / "text.txt"), shuffle=False),
        budget_steps=30,
        callbacks=CallbacksConfig(
            checkpoint=CheckpointConfig(every_steps=1, keep_last=99), spike=spike, sample=None, plot=False
        ),
        trainer=TrainerConfig(accelerator="cpu", devices=1, enable_progress_bar=False, val_check_interval=30),
    )
    run = train(config)
    say("--help")  # and with it what training printed
    (event,) = (event for event in run.events() if event["event"] == "rolled back")
    assert event["from"] == 24 and event["to"] < 22
    losses = {row["step"]: row["train/loss"] for row in read_metrics(run.path / "metrics.csv") if row["step"]}
    for step, more in ((event["to"], []), (event["to"] + 1, []), (24, []), (29, [])):
        # Under the weights that the update began from, the loss of what it read is that of training.
        found = json.loads(say(f"run={run.path}", f"step={step}", f"checkpoint={step - 1}", "output=json", *more))
        assert found["loss"] == pytest.approx(losses[step], rel=1e-4)
    first = json.loads(say(f"run={run.path}", "step=24", "attempt=1", "losses=false", "output=json"))
    assert "".join(one["text"] for one in first["documents"]).startswith(text[23 * 128 : 24 * 128][:8].decode())
    assert f"step={event['from']}" in say(f"run={run.path}")


def test_an_empty_run_is_named(say):
    for arguments in (["run="], ["run=", "step=1"]):
        assert "run= is empty" in say(*arguments, expect=2)
