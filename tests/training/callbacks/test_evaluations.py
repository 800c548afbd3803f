"""`callbacks.evaluate`: what else is measured in training, without changing what is learned."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from small_runs import small_run, step_rows

import gptlab
from gptlab.cli.evaluate import main as evaluate
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.distributed.signals import Interrupted, Stopped
from gptlab.errors import UserError
from gptlab.evaluation.probes import Probe, open_probes
from gptlab.models.build import build_model
from gptlab.runs.folder import read_metrics
from gptlab.training.config import CallbacksConfig, CheckpointConfig
from gptlab.training.loop import train

MODEL = {"context_length": 64}
PAIRS = {"minimal_pairs": 2, "every_steps": 4}


def table(path):
    """Two questions whose answers are options, and two for few-shot examples."""
    rows = [{"q": f"a{n}", "options": ["x", "yy"], "a": ("x", "yy")[n % 2]} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def everything(tmp_path):
    (tmp_path / "other.txt").write_text("It was that his. " * 20)
    questions = {"data": str(table(tmp_path / "my questions.jsonl")), "prompt": "{q}:", "answer": "{a}"}
    return {
        "grammar": PAIRS,
        "other": {"corpus": str(tmp_path / "other.txt")},
        "choice": questions | {"choices": "options", "num_fewshot": [0, 2], "every_steps": 5},
        "free": questions | {"max_new_tokens": 2, "every_steps": 10},
    }


def config_of(folder, evaluate, **options):
    settings = CallbacksConfig(
        checkpoint=CheckpointConfig(every_steps=2, keep_last=9), sample=None, plot=False, evaluate=evaluate
    )
    model = options.pop("model", None) or small_run(folder).model
    model.context_length = 64
    return small_run(folder, model=model, callbacks=settings, batch_tokens=256, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some runs")
    config = config_of(folder / "run", everything(folder))
    config.model.dropout = 0.1  # random state matters
    return config, train(config)


def test_each_is_measured_when_it_is_due(trained):
    _, run = trained
    rows = {row["step"]: row for row in read_metrics(run.path / "metrics.csv")}
    columns = {
        "eval/grammar/accuracy": {0, 4, 8, 10},
        "eval/grammar/irregular_form/accuracy": {0, 4, 8, 10},
        "eval/other/loss": {0, 5, 10},
        "eval/other/bits_per_byte": {0, 5, 10},
        "eval/choice/2_shot/accuracy": {0, 5, 10},
        "eval/free/exact_match": {0, 10},
    }
    for name, steps in columns.items():
        assert {step for step, row in rows.items() if name in row} == steps, name
        assert run.summary[name] == rows[10][name]
    assert not any(name.startswith("eval/") for name in rows[3])


def test_the_numbers_are_those_of_gptlab_evaluate(trained, capsys):
    config, run = trained
    last = read_metrics(run.path / "metrics.csv")[-1]
    place = f"run={run.checkpoint(10)}"
    options = config.callbacks.evaluate

    def numbers(*arguments):
        assert evaluate([place, *arguments, "output=json", "device=cpu"]) == 0
        return json.loads(capsys.readouterr().out)["results"][0]["numbers"]

    assert last["eval/grammar/accuracy"] == numbers("minimal_pairs=2")["accuracy"]
    other = numbers(f"corpus={options['other']['corpus']}")
    assert last["eval/other/loss"] == pytest.approx(other["loss"], rel=1e-5)
    choice = options["choice"]
    asked = [f"{key}={choice[key]}" for key in ("data", "prompt", "answer", "choices")]
    found = numbers(*asked, "num_fewshot=[0,2]")
    assert last["eval/choice/2_shot/accuracy"] == found["num_fewshot=2/accuracy"]


def test_the_run_folder_says_what_was_measured(trained, tmp_path):
    """By its text and the options that change a number, wherever they come from: so runs can be compared by it."""
    config, run = trained
    known = json.loads((run.path / "inputs.json").read_text())
    options = config.callbacks.evaluate
    byte, other = ByteTokenizer(), ByteTokenizer(["<x>"])
    (tmp_path / "copy.txt").write_bytes(Path(options["other"]["corpus"]).read_bytes())
    (tmp_path / "changed.txt").write_text(Path(options["other"]["corpus"]).read_text() + "!")
    table_text = Path(options["choice"]["data"]).read_text()
    (tmp_path / "table.jsonl").write_text(table_text)
    (tmp_path / "changed.jsonl").write_text(table_text.replace("a3", "b3"))
    model = build_model(config.model, other.vocab_size, seed=0)

    def fingerprint(name, tokenizer=byte, **changed):
        probes = open_probes({name: options[name] | changed}, tokenizer, model, context_length=64, speaks=False)
        return probes[0].fingerprint()

    assert {f"callbacks.evaluate.{name}": fingerprint(name) for name in options}.items() <= known.items()
    assert fingerprint("other", other, corpus=str(tmp_path / "copy.txt"), every_steps=3) == fingerprint("other")
    assert fingerprint("choice", data=str(tmp_path / "table.jsonl")) == fingerprint("choice")
    assert fingerprint("free", stop=["\n\n"]) == fingerprint("free")  # which is the separator
    for name, change in (
        ("other", {"corpus": str(tmp_path / "changed.txt")}),
        ("other", {"stride": 5}),
        ("grammar", {"minimal_pairs": 3}),
        ("grammar", {"seed": 7}),
        ("choice", {"data": str(tmp_path / "changed.jsonl")}),
        ("choice", {"num_fewshot": [0, 1]}),
        ("choice", {"delimiter": "-"}),
        ("choice", {"prompt": "{q}?"}),
        ("free", {"max_new_tokens": 3}),
        ("free", {"stop": ["x"]}),
        ("free", {"limit": 1}),
    ):
        assert fingerprint(name, **change) != fingerprint(name), (name, change)


def test_a_run_goes_on_with_the_same_evaluation_alone(trained, tmp_path):
    config, run = trained
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    (folder / "summary.json").unlink()
    changed = config_of(folder, config.callbacks.evaluate | {"grammar": PAIRS | {"seed": 7}})
    changed.model.dropout, changed.data.path = 0.1, config.data.path
    with pytest.raises(UserError, match=r"callbacks\.evaluate\.grammar measures something else .* give the evaluation"):
        train(changed)
    changed.callbacks.evaluate["grammar"] = {"minimal_pairs": 2, "every_steps": 5}  # how often is another matter
    train(changed)


def test_nothing_that_is_learned_changes(trained, tmp_path):
    config, run = trained
    plain = config_of(tmp_path / "plain", {})
    plain.model.dropout = 0.1
    plain.data.path = config.data.path
    expected = step_rows(train(plain).path / "metrics.csv")
    for row, other in zip(step_rows(run.path / "metrics.csv"), expected, strict=True):
        assert {name: row[name] for name in other if not name.startswith("perf/")} == {
            name: value for name, value in other.items() if not name.startswith("perf/")
        }


def test_what_was_stopped_in_an_evaluation_is_made_up_for(trained, tmp_path, monkeypatch):
    config, run = trained
    stopped = config_of(tmp_path / "run", config.callbacks.evaluate)
    stopped.model.dropout, stopped.data.path = 0.1, config.data.path
    measure, calls = Probe.measure, []

    def fails(self, model, between):
        calls.append(self.name)
        if calls.count("grammar") == 3:  # steps 0, 4 and 8
            raise Interrupted(signal.SIGINT)
        return measure(self, model, between)

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "measure", fails)
        with pytest.raises(Stopped, match="stopped by SIGINT, saved at step 8"):
            train(stopped)
    again = train(stopped)

    def rows(folder):
        found = read_metrics(folder / "metrics.csv")
        return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in found]

    assert rows(again.path) == rows(run.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimal_pairs": 2, "every_step": 3}, "x.every_step; did you mean every_steps"),
        ({"minimal_pairs": "many"}, "callbacks.evaluate.x.minimal_pairs=many must be a whole number"),
        ({"minimal_pairs": 2, "every_steps": 0}, "every_steps=0 must be at least 1"),
        ({"tasks": ["hellaswag"]}, "callbacks.evaluate.x.tasks: .*use gptlab evaluate run=CHECKPOINT"),
        ({"seed": 3}, "callbacks.evaluate.x: seed= has no effect on perplexity"),
        ({}, "callbacks.evaluate.x: it names nothing to measure; set corpus=TEXT"),
        ("grammar", "callbacks.evaluate.x=grammar is no evaluation"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        CallbacksConfig(evaluate={"x": options}).check()


def test_what_cannot_work_with_this_run_is_refused_before_it(tmp_path):
    config = small_run(tmp_path / "run")  # a context of 16
    config.callbacks.evaluate = {"grammar": PAIRS}
    with pytest.raises(UserError, match=r"callbacks.evaluate.grammar: minimal pairs have up to .* raise model.context"):
        train(config)
    config = config_of(tmp_path / "run", {"other": {"corpus": str(tmp_path / "none.txt")}})
    with pytest.raises(UserError, match=r"callbacks.evaluate.other: corpus=.*none.txt"):
        train(config)
    config = config_of(tmp_path / "run", {"grammar": {"minimal_pairs": 1}})
    config.data.val_fraction = 0.0
    with pytest.raises(UserError, match=r"set callbacks.evaluate.grammar.every_steps=N"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_it_is_typed_like_any_override(tmp_path):
    config = gptlab.compose(
        "callbacks.evaluate.grammar.minimal_pairs=50",
        "callbacks.evaluate.grammar.every_steps=100",
        "callbacks.evaluate.qa.data=my questions.jsonl",
        "callbacks.evaluate.qa.prompt=Q: {q}?\\nA:",
        "callbacks.evaluate.qa.answer={a}",
        "callbacks.evaluate.qa.choices=[yes,no]",
        "callbacks.evaluate.qa.num_fewshot=[0,5]",
    )
    assert config.callbacks.evaluate["grammar"] == {"minimal_pairs": 50, "every_steps": 100}
    assert config.callbacks.evaluate["qa"]["prompt"] == "Q: {q}?\\nA:"
    assert config.callbacks.evaluate["qa"]["num_fewshot"] == [0, 5]
    assert "evaluate" not in str(config.identity_fields())
    with pytest.raises(UserError, match=r"unknown option callbacks.evaluate.x.minimal_pair"):
        gptlab.compose("callbacks.evaluate.x.minimal_pair=50")
