"""`gptlab evaluate`, in this process and once as a process of its own."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from small_runs import of_objective, small_run, write_run
from small_runs import train as run_train
from warm_python import warm_python

from gptlab.cli import convert
from gptlab.cli.evaluate import HELP, main
from gptlab.config import RunConfig, to_plain
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.evaluation.config import N_SHOWN, EvaluateConfig
from gptlab.generation.config import MAX_NEW_TOKENS, SEED
from gptlab.generation.scoring import token_nats
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.load import load_model
from gptlab.training.config import TrainerConfig
from gptlab.training.loop import train

ASK = ("prompt=is {n} even?", "answer={a}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ten steps and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    trainer = TrainerConfig(accelerator="cpu", devices=1, val_check_interval=5, enable_progress_bar=False)
    config = small_run(folder, trainer=trainer)
    config.callbacks.checkpoint.keep_last = 3
    return folder, train(config).summary


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", context_length=64)


@pytest.fixture
def table(tmp_path):
    def write(n=6, name="rows.jsonl"):
        rows = [{"n": i, "a": ("yes", "no")[i % 2], "c": ["yes", "no", "perhaps"]} for i in range(n)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def last(out):
    return out.splitlines()[-1]


def test_windows_of_the_context_give_the_validation_of_the_run(trained, say):
    folder, summary = trained
    (result,) = json.loads(say(f"run={folder}", "stride=16", "output=json"))["results"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert result["numbers"][name] == pytest.approx(summary[f"val/{name}"], rel=1e-5)
    out = say(f"run={folder}", "stride=16")
    line = re.fullmatch(r"perplexity (\S+) bits_per_byte (\S+) run (.+)", last(out))
    assert float(line[1]) == pytest.approx(summary["val/perplexity"], abs=1e-4) and line[3] == str(folder)
    assert "1,999 tokens, context 16, stride 16" in out


def test_the_run_folder_gets_what_is_shown(trained, say):
    folder, summary = trained
    (result,) = json.loads(say(f"run={folder}", "stride=3", "output=json"))["results"]
    (kept,) = [path for path in (folder / "evaluations").iterdir() if json.loads(path.read_text()) == result]
    assert re.fullmatch(r"00000010-perplexity-[0-9a-f]{8}\.json", kept.name)
    assert result["step"] == 10 and result["run_id"] == summary["run_id"] and result["seed"] == SEED
    assert result["settings"] == {"stride": 3, "precision": "32"}
    assert result["versions"]["torch"] and result["checkpoint"].endswith("best.ckpt")
    before = kept.stat().st_mtime_ns
    say(f"run={folder}", "stride=4")
    assert kept.stat().st_mtime_ns == before  # other settings, another file


def test_checkpoints_of_one_run_are_compared(trained, say):
    folder, _ = trained
    names = [folder / "checkpoints" / f"step_{step:08}.ckpt" for step in (5, 10)]
    out = say(*(f"run={name}" for name in names))
    *_, header, first, second = out.splitlines()
    assert header.split() == ["run", "step", "perplexity", "bits_per_byte"]
    lines = re.findall(r"^perplexity (\S+) bits_per_byte (\S+) run (.+)$", out, re.MULTILINE)
    for row, line, name, step in zip((first, second), lines, names, ("5", "10"), strict=True):
        assert row.split() == [str(name), step, line[0], line[1]] and line[2] == str(name)
    assert lines[0][0] > lines[1][0]  # it learned
    assert len({path.name[:8] for path in (folder / "evaluations").iterdir()}) == 2


def test_a_given_text(run, say, tmp_path):
    (tmp_path / "text.txt").write_text("a text of ones own")
    out = say(f"run={run}", f"corpus={tmp_path / 'text.txt'}", "output=json", f"to={tmp_path / 'out.json'}")
    (result,) = json.loads(out)["results"]
    model, tokenizer, _ = load_model(str(run))
    assert result["numbers"]["n_tokens"] == 17
    nats = token_nats(model, tokenizer.encode("a text of ones own").tolist())
    assert json.loads((tmp_path / "out.json").read_text())["results"] == [result]
    assert result["numbers"]["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 18, rel=1e-6)


def test_an_external_folder_is_evaluated_and_left_alone(run, say, tmp_path):
    (tmp_path / "text.txt").write_text("a text of ones own")
    assert convert.main([f"from={run}", f"to={tmp_path / 'out'}"]) == 0
    there = sorted((tmp_path / "out").iterdir())
    options = (f"corpus={tmp_path / 'text.txt'}", "output=json")
    found = [
        json.loads(say(f"run={place}", *options).splitlines()[-1])["results"][0] for place in (tmp_path / "out", run)
    ]
    assert found[0]["numbers"]["loss"] == pytest.approx(found[1]["numbers"]["loss"], rel=1e-5)
    assert sorted((tmp_path / "out").iterdir()) == there and found[0]["step"] is None


def test_choices(run, say, table):
    options = (f"run={run}", f"data={table()}", *ASK, "num_fewshot=[0,1]")
    out = say(*options, "choices=[yes,no]")
    header, *rows = out.splitlines()[-3:]
    assert header.split() == ["num_fewshot", "accuracy", "accuracy_per_byte"]
    assert [row.split()[0] for row in rows] == ["0", "1"] and len({len(line) for line in (header, *rows)}) == 1
    shown = out.split("--- record ")[1:]
    assert len(shown) == N_SHOWN and shown[1].startswith(
        f"2 of {table()} (index 1)\n0-shot prompt\n    is 1 even?\n1-shot"
    )
    assert re.search(r"^reference  no +-\d+\.\d{4}[ *]", shown[1], re.MULTILINE)
    options = (f"run={run}", f"data={table()}", r"prompt=even\n{n} \\n", "answer={a}", "num_fewshot=[0,1]")
    (result,) = json.loads(say(*options, "choices=c", "output=json"))["results"]
    assert result["samples"][1]["prompt"] == "even\n1 \\n"
    assert [row["choices"] for row in result["samples"]] == [["yes", "no", "perhaps"]] * 6


def test_answers_side_by_side(run, say, table):
    settings = 'settings=["temperature=0", "temperature=0.7 top_p=0.9", "num_beams=2"]'
    options = (f"run={run}", f"data={table()}", *ASK, "num_fewshot=[0,1]", settings, "max_new_tokens=5", "limit=4")
    out = say(*options, "n_shown=2", r"separator=\n--\n")
    blocks = out.split("\n--- ")
    assert len(blocks) == 2 and blocks[0].startswith("--- record 1 of ")
    names = ["temperature=0", "temperature=0.7,top_p=0.9", "num_beams=2"]
    labels = [f"{n}-shot, {name}" for n in (0, 1) for name in names]
    for name in ("reference", *labels):
        assert re.search(rf"^{re.escape(name)}  ", blocks[0], re.MULTILINE)
    lines = blocks[0].splitlines()
    assert lines[1:4] == ["0-shot prompt", "    is 0 even?", "1-shot prompt"]
    assert re.fullmatch(r"    is \d even\? (yes|no)", lines[4]) and lines[5:7] == ["    --", "    is 0 even?"]
    assert [line.split()[:2] for line in out.splitlines() if line[:2] in ("0 ", "1 ")] == [
        [str(n), name] for n in (0, 1) for name in names
    ]
    (result,) = json.loads(say(*options, "output=json"))["results"]
    assert len(result["samples"]) == 4 and len(result["numbers"]) == 2 * 3 * 4
    assert result == json.loads(say(*options, "output=json"))["results"][0] | {"seconds": result["seconds"]}


def test_options_for_examples_may_stay_where_there_are_none(run, say, table):
    options = (f"run={run}", f"data={table()}", *ASK, "delimiter=:", "separator=;", "limit=2", "output=json")
    for n in ("0", "[0,1]", "1"):
        (result,) = json.loads(say(*options, "choices=[yes,no]", f"num_fewshot={n}"))["results"]
        assert result["samples"][0]["prompts"].get("0", "is 0 even?") == "is 0 even?"
        assert re.fullmatch(
            r"is \d even\?:(yes|no);is 0 even\?", result["samples"][0]["prompts"].get("1", "is 1 even?:no;is 0 even?")
        )


def test_examples_and_prompts_by_index(run, say, table):
    options = (f"run={run}", f"data={table(20)}", *ASK, "max_new_tokens=2", "output=json")
    (result,) = json.loads(say(*options, "fewshot_indices=[4,8,12]", "num_fewshot=[0,1,3]", "indices=[19]"))["results"]
    (sample,) = result["samples"]
    shots = [f"is {i} even? yes" for i in (4, 8, 12)]
    assert sample["prompts"] == {
        "0": "is 19 even?",
        "1": "\n\n".join([*shots[:1], "is 19 even?"]),
        "3": "\n\n".join([*shots, "is 19 even?"]),
    }
    assert sample["index"] == 19 and sample["fewshot_indices"] == [4, 8, 12] and sample["reference"] == "no"
    # Without num_fewshot all of them are given; those that are examples are not evaluated.
    (result,) = json.loads(say(*options, "fewshot_indices=[0,2]", "limit=3"))["results"]
    assert [sample["index"] for sample in result["samples"]] == [1, 3, 4]
    assert all(list(sample["prompts"]) == ["2"] for sample in result["samples"])


def test_a_length_for_each_setting(run, say, table):
    settings = 'settings=["temperature=0 max_new_tokens=2", "temperature=0"]'
    options = (f"run={run}", f"data={table()}", *ASK, "limit=2", "stop=[]", "output=json")
    (result,) = json.loads(say(*options, settings, "max_new_tokens=7"))["results"]
    for sample in result["samples"]:
        short, long = (answer["text"] for answer in sample["answers"])
        assert long.startswith(short.rstrip("\ufffd")) and short != long
    assert "max_new_tokens=7 has no effect where every one of settings= has its own" in say(
        *options, 'settings=["temperature=0 max_new_tokens=2"]', "max_new_tokens=7", expect=2
    )


def test_data_as_training_reads_it(run, say, table, tmp_path):
    pytest.importorskip("datasets")
    import gzip

    import pandas

    file = table()
    frame = pandas.read_json(file, lines=True)
    (tmp_path / "parts").mkdir()
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_parquet(tmp_path / "parts" / "test-00000-of-00001.parquet")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    options = (f"run={run}", *ASK, "choices=c", "num_fewshot=[0,2]", "output=json")
    (expected,) = json.loads(say(*options, f"data={file}"))["results"]
    for name, more in (("rows.parquet", ()), ("rows.jsonl.gz", ()), ("parts", ("hub_split=test",))):
        (found,) = json.loads(say(*options, f"data={tmp_path / name}", *more))["results"]
        assert found["numbers"] == expected["numbers"], name
        assert [s["prompts"] for s in found["samples"]] == [s["prompts"] for s in expected["samples"]]
    assert "hub_split=none" in say(*options, f"data={tmp_path / 'parts'}", "hub_split=none", expect=2)
    assert f"subset=x is for a data set, and data={file} is a table" in say(
        *options, f"data={file}", "subset=x", expect=2
    )


def test_what_is_measured_before_an_interruption_is_kept(run, say, table, tmp_path, monkeypatch):
    from gptlab.evaluation.responses import Responder

    original, calls = Responder.respond, []

    def respond(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Responder, "respond", respond)
    target = tmp_path / "out.json"
    settings = 'settings=["temperature=0", "num_beams=2"]'
    options = [f"run={run}", f"data={table()}", *ASK, settings, "max_new_tokens=3", f"to={target}"]
    code = main(options)
    assert code == 130
    (result,) = json.loads(target.read_text())["results"]
    assert not result["complete"] and {name.split("/")[1] for name in result["numbers"]} == {"temperature=0"}
    assert not (run / "evaluations").exists()


def test_examples_of_another_table(run, say, table):
    options = (f"run={run}", f"data={table(1)}", *ASK, "num_fewshot=2", "max_new_tokens=2", "seed=1")
    assert "needs 2 examples before record 1" in say(*options, expect=2)
    say(*options, f"examples={table(3, 'more.jsonl')}")


def write_model(folder, config):
    """A run folder of any architecture."""
    model, tokenizer = build_model(config, 257, seed=0), ByteTokenizer()
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    run = RunConfig(tokenizer=ByteConfig(), budget_steps=1)
    plain = to_plain(run) | {"model": to_plain(config)}
    state = CheckpointState(step=1, config=plain, tokenizer=tokenizer.fingerprint)
    checkpoint.save(folder / "checkpoints" / "best.ckpt", state, model.state_dict())
    return folder


def test_architectures(say, table, tmp_path):
    encoder = write_model(tmp_path / "encoder", EncoderConfig(n_layer=1, n_head=2, d_model=8))
    t5 = write_model(tmp_path / "t5", EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8))
    options = (f"data={table()}", *ASK)
    error = say(f"run={encoder}", *options, expect=2)
    assert "is a model of type encoder, which generates no text" in error
    assert "of type encoder_decoder, which does not predict the next token of a text" in say(f"run={t5}", expect=2)
    out = say(f"run={t5}", *options, "choices=[yes,no]", "num_fewshot=[0,3]")
    assert last(out).split()[0] == "3"
    error = say(f"run={t5}", *options, "choices=[yes,no]", "delimiter=:", expect=2)
    assert "delimiter= has no effect on run=" in error
    out = say(f"run={t5}", *options, "num_fewshot=[0,1]", "max_new_tokens=3", "settings=[num_beams=2]")
    assert last(out).split()[:2] == ["1", "num_beams=2"]


@pytest.mark.parametrize(
    "options, message",
    [
        ("num_fewshots=1", "unknown option num_fewshots of gptlab evaluate; did you mean num_fewshot?"),
        ("shots=1", "unknown option shots of gptlab evaluate; did you mean num_fewshot?"),
        ("stride=few", "stride=few must be a whole number"),
        ("stride=0", "stride=0 must be at least 1"),
        ("stride=65 corpus=rows.jsonl", "stride=65 is more than the context of 64"),
        ("num_fewshot=[0,-1] data=rows.jsonl prompt={n} answer={a}", "num_fewshot=-1 must be at least 0"),
        ("num_fewshot=[0,0] data=rows.jsonl prompt={n} answer={a}", "num_fewshot=0 is given twice"),
        ("num_fewshot=[0 data=rows.jsonl", "num_fewshot=[0 is not a list of values; write num_fewshot=[one,two]"),
        ("data=rows.jsonl", "data= needs prompt="),
        ("data=rows.jsonl prompt={n}", "data= needs answer="),
        ("data=rows.jsonl prompt={m} answer={a}", "prompt has the field {m}, which record 1 of rows.jsonl lacks"),
        ("data=rows.jsonl prompt=m answer={a}", "prompt='m' names no column, so that it is the same for all records"),
        ("data=rows.jsonl prompt={n answer={a}", "and a brace itself as {{ or }}"),
        ("data=none.jsonl prompt={n} answer={a}", "none.jsonl does not exist; give a table"),
        ("data=empty.jsonl prompt={n} answer={a}", "empty.jsonl is empty"),
        (
            "data=rows.jsonl prompt={n} answer={a} num_fewshot=6",
            "num_fewshot=6 needs 6 examples before record 1 of rows.jsonl",
        ),
        (
            "data=rows.jsonl prompt={n} answer={a} max_new_tokens=80",
            "the context of 64 holds; leave the record out, shorten prompt=, or lower max_new_tokens=",
        ),
        ("data=rows.jsonl prompt={n} answer={a} choices=[yes]", "choices= has fewer than two choices"),
        ("data=rows.jsonl prompt={n} answer={a} choices=d", "choices=d is not a column of record 1 of rows.jsonl"),
        ("data=rows.jsonl prompt={n} answer={a} examples=rows.jsonl", "examples= is for few-shot examples"),
        ("data=rows.jsonl prompt={n} answer={a} settings=[heat=1]", "unknown option heat of settings="),
        ("data=rows.jsonl prompt={n} answer={a} settings=[top_p=2]", "top_p=2.0 is outside (0, 1]"),
        ("data=rows.jsonl prompt={n} answer={a} settings=[top_k=5,top_k=5.0]", "top_k=5.0 must be a whole number"),
        ("data=rows.jsonl prompt={n} answer={a} settings=[top_p=.5,top_p=0.5]", "settings= has top_p=0.5 twice"),
        ("data=rows.jsonl prompt={n} answer={a} settings=[temperature='0]", "temperature='0 must be a number"),
        ("data=rows.jsonl prompt={n} answer={a} choices=[yes,yes]", "choices=yes is given twice"),
        ('data=rows.jsonl prompt={n} answer={a} choices=[yes,no,""]', "choices= has '', and a choice is text"),
        ("data=rows.jsonl prompt={n} answer={a} separator=", "separator= is empty, and an answer ends at it"),
        ("data=rows.jsonl prompt={n} answer={a} stop=", "stop= has an empty text"),
        ("data=rows.jsonl prompt={n} answer={a} settings=[]", "settings=[] is empty"),
        (
            "data=rows.jsonl prompt={n} answer={a} fewshot_indices=[0] indices=[0]",
            "indices=0 has the prompt of fewshot_",
        ),
        ("data=rows.jsonl prompt={n} answer={a} indices=[6]", "the index 6 is beyond rows.jsonl, whose 6 records have"),
        ("data=rows.jsonl prompt={n} answer={a} indices=[-1]", "indices=-1 must be at least 0"),
        ("data=rows.jsonl prompt={n} answer={a} indices=[1,1]", "indices=1 is given twice"),
        (
            "data=rows.jsonl prompt={n} answer={a} fewshot_indices=[0,1] num_fewshot=3",
            "num_fewshot=3 is more than the 2",
        ),
        ("data=rows.jsonl prompt={n} answer={a} fewshot_indices=[0] num_fewshot=0", "fewshot_indices= is for few-shot"),
        ("data=rows.jsonl prompt={n} answer={a} answer_format=index", "answer_format= has no effect on answers"),
        ("data=rows.parquet prompt={n} answer={a}", "rows.parquet does not exist; give a table, the folder of a data"),
        ("data=./rows prompt={n} answer={a}", "data=./rows does not exist; give a table"),
        (
            "data=rows.jsonl prompt={n} answer={a} choices=c answer_format=letter",
            "the answer 'yes' is no letter of the",
        ),
        ("data=rows.jsonl prompt={n} answer={a} choices=c stop=[x]", "stop= has no effect on choices"),
        (
            "data=rows.jsonl prompt={n} answer={a} corpus=rows.jsonl",
            "corpus= has no effect on answers; use it without",
        ),
        ("prompt={n}", "prompt= has no effect on perplexity; use it with data=FILE"),
        ("corpus=none.txt", "corpus=none.txt does not exist; give a file, a folder or a glob"),
        ("corpus=one.txt", "there is no token to predict; give a longer text"),
        ("", "run=run has no record of what it was trained on; name a text with corpus=FILE"),
        ("run=run", "run=run is given twice"),
        ("corpus=", "corpus= is empty"),
        ("run=./none corpus=rows.jsonl", "run=./none does not exist"),
        ("corpus=rows.jsonl to=none/out.json", "to=none/out.json is not a file in a folder that exists"),
        ("corpus=rows.jsonl device=meta", "device=meta holds no values"),
        ("corpus=rows.jsonl output=xml", "output=xml is unknown; known: text, json"),
    ],
)
def test_wrong_options_are_answered(options, message, run, table, say, tmp_path, monkeypatch):
    table()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "one.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert message in say("run=run", *options.split(), expect=2)
    assert not (run / "evaluations").exists()


def test_tasks_without_the_library(run, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "gptlab.evaluation.harness", raising=False)
    assert 'pip install "gptlab[evaluation]"' in say(f"run={run}", "tasks=[hellaswag]", expect=2)


def test_changed_data_is_no_longer_the_validation(trained, say, tmp_path):
    folder = write_run(tmp_path / "copy")
    for name in ("config.yaml", "tokenizer.json"):
        (folder / name).write_bytes((trained[0] / name).read_bytes())
    saved = checkpoint.load(trained[0] / "checkpoints" / "last.ckpt")
    other = replace(saved.state, data="other")
    checkpoint.save(folder / "checkpoints" / "best.ckpt", other, saved.model)
    assert "was trained on other data than" in say(f"run={folder}", expect=2)


def test_help_has_every_option_and_default():
    sections = re.split(r"\n    (?=\w)", HELP.split("\n\n", 1)[1].replace("\n    run", "    run", 1))
    shown = {}
    for section in sections:
        names = re.split(r"\s{2,}", section.strip())[0].split()
        shown |= dict.fromkeys(names, re.search(r"\(([^()]*)\)", section))
    assert {f.name for f in fields(EvaluateConfig)} <= shown.keys()
    for name, value in (
        ("seed", SEED),
        ("max_new_tokens", MAX_NEW_TOKENS),
        ("n_shown", N_SHOWN),
        ("num_fewshot", 0),
        ("precision", 32),
    ):
        assert shown[name][1] == str(value), name


def test_as_a_process_json_is_alone_on_standard_output(run, table, tmp_path):
    options = [f"run={run}", f"data={table()}", *ASK, "choices=[yes,no]", "output=json"]
    done = subprocess.run(
        [warm_python(), "-m", "gptlab.cli.main", "evaluate", *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["what"] == "choices" and done.stdout.count("\n") == 1


PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


COMMANDS = [shlex.split(line, comments=True) for block in fences("sh") for line in block.splitlines()]
FIRST = [options[2:] for options in COMMANDS if options[0] == "gptlab" and "run=runs/rules" not in options]


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """A folder with a run and the files that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "runs").mkdir()
    model = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=256)
    train(small_run(folder / "runs" / "NAME", model=model, batch_tokens=256))
    (folder / "FILE").write_text("it was the best of times, it was the worst of times\n" * 9)
    rows = [{"question": f"is {i} even?", "options": ["yes", "no"], "answer": ("yes", "no")[i % 2]} for i in range(8)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"dialogue": f"A: is {i} even?\nB: ask C.", "summary": f"A asks for {i}."} for i in range(3)]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = fences("yaml")
    (folder / "task.yaml").write_text(task)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("options", FIRST, ids=" ".join)
def test_the_documentations_commands(options, documented, say, monkeypatch):
    if any(option.startswith("tasks=") for option in options):
        pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "gptlab[evaluation]"')
    monkeypatch.chdir(documented)
    out = say(*options)
    assert re.search(r"^(perplexity \d+\.\d+ bits_per_byte \d+\.\d+ run|run) runs/NAME\b", out, re.MULTILINE)
    assert re.search(r" \d+\.\d{4}\b", out)


def test_the_documentations_example_of_few_shot_prompts(tmp_path, say, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, from_python = fences("python")
    exec(example, {})
    learn, ask = (options for options in COMMANDS if "name=rules" in options or "run=runs/rules" in options)
    options = [option for option in learn[2:] if not option.startswith("budget_steps=")]
    tiny = [
        "budget_steps=2",
        "model.d_model=16",
        "callbacks.plot=false",
        "trainer.accelerator=cpu",
        "callbacks.sample=null",
    ]
    done = run_train([*options, *tiny], tmp_path)
    assert done.returncode == 0, done.stderr
    out = say(*ask[2:], "limit=5")
    assert re.findall(r"^(\d) +temperature=0 ", out, re.MULTILINE) == ["0", "1", "5"]
    (tmp_path / "runs" / "NAME").symlink_to(tmp_path / "runs" / "rules")
    (tmp_path / "FILE").write_text("abcd > ABCD\n" * 5)
    exec(from_python, {})


@pytest.mark.parametrize(
    "objective, message",
    [
        ("masked_lm", "is a model of type encoder, which generates no text"),
        ("span_corruption", "does not predict the next token of a text"),
        (
            "classification",
            "trained with objective=classification, whose validation split is not plain text to predict",
        ),
        ("instruction", "trained with objective=instruction, whose validation split is not plain text to predict"),
    ],
)
def test_runs_of_other_objectives(objective, message, say, table, tmp_path):
    run = tmp_path / "runs" / "run"
    run.parent.mkdir()
    train(small_run(run, **of_objective(objective, run.parent)))
    assert message in say(f"run={run}", expect=2)
    if objective in ("span_corruption", "instruction"):
        options = (f"data={table()}", *ASK, "max_new_tokens=2", "num_fewshot=0", "limit=2")
        assert last(say(f"run={run}", *options)).split()[:2] == ["0", "temperature=0"]
