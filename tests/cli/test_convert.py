"""`gptlab convert` and `model.init_from`, from the arguments to the files on disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from interop.external import CASES, Case, gpt2, own_code, run_convert
from small_runs import of_objective, small_run
from warm_python import warm_python

import gptlab
from gptlab import open_run
from gptlab.cli import generate, main
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import example_index
from gptlab.data.prepare import prepare
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.config import ByteConfig, TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.generation import decode
from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model
from gptlab.models.config import Feedforward, model_from_plain
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Norm, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig
from gptlab.objectives.config import ClassificationConfig
from gptlab.runs import checkpoint
from gptlab.runs import convert as library
from gptlab.runs.initial_weights import open_initial
from gptlab.runs.load import load_model
from gptlab.training.loop import train

SHAPE = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
MODELS = {
    "gpt2": DecoderConfig(**SHAPE),
    "gpt1": DecoderConfig(**SHAPE, norm_placement=NormPlacement.post),
    "llama": DecoderConfig(
        **SHAPE,
        n_kv_head=1,
        position=Position.rotary,
        norm=Norm.rmsnorm,
        feedforward=Feedforward.swiglu,
        bias=False,
        tie_embeddings=False,
    ),
}


def ran(folder: Path, **options) -> Path:
    train(small_run(folder, **options))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_run_is_the_same_in_transformers(name, tmp_path):
    run = ran(tmp_path / "run", model=MODELS[name])
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_tokenizer(run / "tokenizer.json")

    saved = checkpoint.load(run / "checkpoints" / "best.ckpt")
    text = (tmp_path / "text.txt").read_text()
    ids = ours.encode(text)
    assert tokenizer(text)["input_ids"] == ids.tolist()
    n_val = json.loads((run / "summary.json").read_text())
    model = build_model(model_from_plain(saved.state.config["model"]), ours.vocab_size, seed=0).eval()
    model.load_state_dict(dict(saved.model))

    # The whole validation split, in windows that predict every token but the first once.
    config = small_run(run, model=MODELS[name])
    tokens = torch.from_numpy(prepare(config.data, config.tokenizer, progress=False).val.tokens[:].astype("int64"))
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = tokens[start : start + 17][None]
            log_p = theirs(window[:, :-1]).logits.log_softmax(-1)
            total -= float(log_p.gather(-1, window[:, 1:, None]).sum())
            count += window.shape[1] - 1
    assert total / count == pytest.approx(saved.state.best["val/loss"], abs=1e-4)
    assert n_val["val/loss"] >= saved.state.best["val/loss"] - 1e-6

    prompt = tokens[:4][None]
    written = theirs.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=ours.eot)
    expected = prompt
    while expected.shape[1] < written.shape[1]:
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, expected) and written.shape[1] > 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert f"| val/loss | {saved.state.best['val/loss']:.4f} |" in card and "d_model: 32" in card


@pytest.mark.parametrize("architecture", [DecoderConfig, EncoderConfig])
def test_a_class_head_goes_with_its_model(architecture, tmp_path, capsys):
    options = of_objective("classification", tmp_path)
    options |= {"model": architecture(**SHAPE), "objective": ClassificationConfig()}
    run = ran(tmp_path / "run", **options, tokenizer=ByteConfig(special_tokens=["<cls>", "<sep>"]))
    capsys.readouterr()
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    left_out = "heads that score tokens are left out: BertForSequenceClassification of transformers has none"
    assert (left_out in capsys.readouterr().out) is (architecture is EncoderConfig)
    auto = transformers.AutoModelForSequenceClassification
    with own_code(tmp_path / "code"):
        theirs, about = auto.from_pretrained(tmp_path / "out", trust_remote_code=True, output_loading_info=True)
    assert not any(about.values())
    name = "BertForSequenceClassification" if architecture is EncoderConfig else "GptlabForSequenceClassification"
    assert type(theirs).__name__ == name and theirs.config.id2label == {0: "False", 1: "True"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "AutoModelForSequenceClassification" in card

    model, ours = gptlab.load(run)
    ids = tokenizer("<cls>is it?<sep>", return_tensors="pt").input_ids
    assert ids[0, 1:-1].tolist() == ours.encode("is it?").tolist()
    hidden = model.hidden_states(ids)
    pooled = hidden[:, -1] if architecture is DecoderConfig else model.pooled(hidden)
    assert torch.allclose(theirs.eval()(ids).logits, model.class_head(pooled), atol=1e-4)
    again, _ = gptlab.load(tmp_path / "out")
    assert torch.equal(again.class_head.weight, model.class_head.weight)


def test_a_named_checkpoint_is_taken(tmp_path):
    run = ran(tmp_path / "run")
    assert (
        run_convert(f"from={run / 'checkpoints' / 'last.ckpt'}", f"to={tmp_path / 'out'}", "format=transformers") == 0
    )
    weights = checkpoint.load(run / "checkpoints" / "last.ckpt").model
    for name, value in TransformersFolder(tmp_path / "out").tensors():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("name", ["gpt1", "gpt2 untied", "llama tied, grouped", "mistral window", "qwen2"])
def test_into_gptlab_and_out_again(name, tmp_path, capsys):
    theirs = CASES[name].save(tmp_path / "theirs")
    assert run_convert(f"from={theirs}", f"to={tmp_path / 'ours'}") == 0
    assert "the checkpoint gets no tokenizer" in capsys.readouterr().out
    assert run_convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}") == 0
    assert (theirs / "model.safetensors").stat().st_size == pytest.approx(
        (tmp_path / "back" / "model.safetensors").stat().st_size, rel=0.01
    )
    before, after = TransformersFolder(theirs), TransformersFolder(tmp_path / "back")
    assert all(torch.equal(after.read(key), value) for key, value in before.tensors())
    config = open_run(tmp_path / "ours").config
    assert config.model.vocab_size == 61 and config.model.n_layer == before.config.n_layer


def test_the_tokenizer_goes_with_the_model(tmp_path):
    run = ran(tmp_path / "run")
    assert (
        run_convert(f"from={run}", f"to={tmp_path / 'out'}")
        == run_convert(f"from={tmp_path / 'out'}", f"to={tmp_path / 'in'}")
        == 0
    )
    ours, again = load_tokenizer(run / "tokenizer.json"), load_tokenizer(tmp_path / "in" / "tokenizer.json")
    assert again.eot == ours.eot and again.encode("naïve").tolist() == ours.encode("naïve").tolist()
    assert run_convert(f"from={tmp_path / 'in'}", f"to={tmp_path / 'again'}") == 0
    third = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert third("naïve")["input_ids"] == ours.encode("naïve").tolist() and third.eos_token_id == ours.eot


def test_nothing_is_overwritten_unless_asked(tmp_path, capsys):
    theirs = CASES["gpt2"].save(tmp_path / "theirs")
    target = tmp_path / "ours"
    assert run_convert(f"from={theirs}", f"to={target}") == 0
    kept = (target / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run_convert(f"from={theirs}", f"to={target}") == 2
    assert "is not empty; name another folder, or add overwrite=true to replace it" in capsys.readouterr().err
    assert (target / "checkpoints" / "last.ckpt").stat().st_mtime_ns == kept
    assert run_convert(f"from={theirs}", f"to={target}", "overwrite=true") == 0
    assert (target / "checkpoints" / "last.ckpt").stat().st_mtime_ns != kept
    for _ in range(2):
        assert run_convert(f"from={target}", f"to={tmp_path / 'back'}", "overwrite=true") == 0
    assert run_convert(f"from={theirs}", f"to={theirs}", "overwrite=true") == 2
    assert "holds from=" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "ours", "theirs"]


def test_only_what_was_converted_is_replaced(tmp_path, capsys):
    theirs = CASES["gpt2"].save(tmp_path / "theirs")
    stranger = CASES["gpt2"].save(tmp_path / "stranger")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "config.yaml").write_text("a: 1")
    (tmp_path / "project" / "src" / "thesis.txt").write_text("years of work")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.yaml").write_text("a: 1")
    run = ran(tmp_path / "run")
    exported = tmp_path / "exported"
    assert run_convert(f"from={run}", f"to={exported}") == 0
    (exported / "figure.png").write_text("mine")
    for folder, what in (
        (stranger, "lacks README.md"),
        (tmp_path / "notes", "holds diary.txt, which gptlab convert does not write"),
        (tmp_path / "project", "holds src"),
        (tmp_path / "settings", "lacks checkpoints"),
        (run, "holds "),
        (exported, "holds figure.png"),
    ):
        before = sorted(folder.rglob("*"))
        assert run_convert(f"from={theirs}", f"to={folder}", "overwrite=true") == 2
        error = capsys.readouterr().err
        assert f"to={folder} {what}" in error and "overwrite=true replaces nothing else" in error, error
        assert sorted(folder.rglob("*")) == before


def test_links_are_followed_and_files_are_not_folders(tmp_path, capsys):
    theirs = CASES["gpt2"].save(tmp_path / "theirs")
    (tmp_path / "link").symlink_to("behind")
    for options in ([], ["overwrite=true"]):
        assert run_convert(f"from={theirs}", f"to={tmp_path / 'link'}", *options) == 0
        assert (tmp_path / "link").is_symlink() and (tmp_path / "behind" / "config.yaml").is_file()
    assert run_convert(f"from={theirs}", f"to={tmp_path / 'link'}") == 2
    assert run_convert(f"from={theirs}", f"to={theirs / 'config.json' / 'x' / 'y'}") == 2
    assert "is within a file; name a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["behind", "link", "theirs"]


def test_what_was_interrupted_is_cleared(tmp_path):
    theirs = CASES["gpt2"].save(tmp_path / "theirs")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".ours.{gone.pid}.tmp", f".ours.{os.getppid()}.tmp", ".ours.notes.tmp", f".other.{gone.pid}.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / f".back.{gone.pid}.old").mkdir()  # killed between two renames
    (tmp_path / f".back.{gone.pid}.old" / "diary.txt").write_text("mine")
    assert run_convert(f"from={theirs}", f"to={tmp_path / 'ours'}") == 0
    left = {f".back.{gone.pid}.old", f".other.{gone.pid}.tmp", f".ours.{os.getppid()}.tmp", ".ours.notes.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == left | {"ours", "theirs"}
    with library.appearing(tmp_path / "elsewhere"):
        pass
    library.clear_interrupted(tmp_path / "back")
    assert (tmp_path / "back" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(number, tmp_path):
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from gptlab.cli.guard import guard; from gptlab.runs import convert\n"
        "def write():\n"
        "    with convert.appearing(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'half').write_text('half')\n"
        "        try: os.kill(os.getpid(), int(sys.argv[2])); time.sleep(60)\n"
        "        finally: raise RuntimeError('cut short')\n"
        "sys.exit(guard(write))"
    )
    before = signal.signal(number, signal.SIG_DFL)  # children inherit what nohup ignores
    try:
        done = subprocess.run([warm_python(), "-c", program, tmp_path / "out", str(int(number))], timeout=60)
    finally:
        signal.signal(number, before)
    assert done.returncode == 128 + number and not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path, capsys):
    run = ran(tmp_path / "run")
    path = run / "checkpoints" / "best.ckpt"
    saved = checkpoint.load(path)
    checkpoint.save(path, saved.state, {name: value.to(torch.int8) for name, value in saved.model.items()})
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 2
    assert "and weights are written as F32" in capsys.readouterr().err
    assert run_convert(f"from={run}", f"to={tmp_path / 'out' / 'of' / 'reach'}") == 2
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_model_with_code_of_its_own_in_and_out(tmp_path, capsys):
    """The folder's name has a space; the code is replaced with it."""
    options = {"qk_norm": True, "attention_pattern": AttentionPattern.alternating, "attention_window": 4}
    run, out = ran(tmp_path / "run", model=DecoderConfig(**SHAPE, **options)), tmp_path / "my model"
    for _ in range(2):
        assert run_convert(f"from={run}", f"to={out}", "overwrite=true") == 0
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    assert (
        "init_from" not in (out / "config.json").read_text() and str(tmp_path) not in (out / "config.json").read_text()
    )
    capsys.readouterr()
    assert generate.main([f"run={out}", "prompt=the", "max_new_tokens=5", "temperature=0"]) == 0
    from_folder = capsys.readouterr().out
    assert generate.main([f"run={run}", "prompt=the", "max_new_tokens=5", "temperature=0"]) == 0
    assert capsys.readouterr().out == from_folder
    assert run_convert(f"from={out}", f"to={tmp_path / 'in'}") == 0
    started = DecoderConfig(**SHAPE, **options, init_from=str(out))
    open_initial(started, 257, ByteConfig().build(lambda: iter(())))
    with pytest.raises(ValueError, match=r"add model\.qk_norm=true$"):
        open_initial(replace(started, qk_norm=False), 257)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["form=x"], "unknown option form of gptlab convert; did you mean format?"),
        (["color=red"], "unknown option color of gptlab convert; known: from, to, format, overwrite"),
        (["from"], "from needs a value; write from=..."),
        (["from=here"], "gptlab convert needs to=PATH"),
        (["to=here"], "gptlab convert needs from=PATH"),
        (["from=a", "to=b", "format=onnx"], "format=onnx is unknown; known: transformers, gptlab, openai"),
        (["from=a", "to=b", "format=open"], "format=open is unknown; did you mean openai?"),
        (["from=a", "to=b", "overwrite=yes"], "overwrite=yes must be true or false"),
        (
            ["from=./none", "to=b"],
            "from=./none does not exist; name a run folder, a .ckpt file or a transformers folder",
        ),
        (["from=empty", "to=b"], "from=empty is a folder that holds no model: neither config.json, as transformers"),
        (["from=theirs", "to=b", "format=transformers"], "from=theirs has format=transformers already"),
        (["from=theirs", "to=text.txt"], "to=text.txt is a file; name a folder"),
        (["from=text.txt", "to=b"], "text.txt is damaged or no checkpoint"),
    ],
)
def test_wrong_options_are_answered(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    CASES["gpt2"].save(tmp_path / "theirs")
    assert run_convert(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_verbs(monkeypatch, capsys):
    for argv, code in ((["gptlab"], 0), (["gptlab", "--help"], 0), (["gptlab", "convert"], 0)):
        monkeypatch.setattr("sys.argv", argv)
        assert main.main() == code
        assert "gptlab convert" in capsys.readouterr().out
    for verb, hint in (
        ("convrt", "did you mean convert?"),
        ("dance", f"known: {', '.join(main.VERBS)}"),
    ):
        monkeypatch.setattr("sys.argv", ["gptlab", verb])
        assert main.main() == 2
        assert capsys.readouterr().err == f"error: {verb} is not a command of gptlab; {hint}\n"


BYTES = Case("GPT2Config", gpt2(vocab_size=257, n_embd=32, n_head=2, n_layer=2))
OURS = {**SHAPE, "norm_eps": 0.03, "vocab_size": 257}


def loss_before_training(config) -> float:
    """What the first step measured, before it changed anything."""
    train(config)
    return float((Path(config.run_dir) / "metrics.csv").read_text().splitlines()[2].split(",")[2])


def test_training_starts_from_external_weights(tmp_path):
    path = BYTES.save(tmp_path / "theirs")
    assert run_convert(f"from={path}", f"to={tmp_path / 'ours'}") == 0
    losses = [
        loss_before_training(
            small_run(tmp_path / name, model=DecoderConfig(**OURS, init_from=str(tmp_path / source)), budget_steps=2)
        )
        for name, source in (("a", "theirs"), ("b", "ours"), ("c", "ours/checkpoints/last.ckpt"))
    ]
    afresh = loss_before_training(small_run(tmp_path / "d", model=DecoderConfig(**OURS), budget_steps=2))
    assert losses[0] == losses[1] == losses[2] != afresh
    model = BYTES.model()
    config = small_run(tmp_path / "a", model=DecoderConfig(**OURS, init_from=str(path)), budget_steps=2)
    data = prepare(config.data, config.tokenizer, progress=False)
    sequences = SlidingWindows(data.train.tokens, 16, 16)
    first = torch.as_tensor(sequences.gather(example_index(config.seed, np.arange(8), len(sequences))))
    with torch.no_grad():
        log_p = model(first[:, :-1]).logits.log_softmax(-1).gather(-1, first[:, 1:, None])
    assert float(-log_p.mean()) == pytest.approx(losses[0], abs=1e-4)


def test_a_resumed_run_does_not_start_again(tmp_path):
    path = BYTES.save(tmp_path / "theirs")
    model = DecoderConfig(**OURS, init_from=str(path))
    config = small_run(tmp_path / "run", model=model, budget_steps=10)
    config.callbacks.checkpoint.every_steps = 5
    config.callbacks.checkpoint.keep_last = 9
    train(config)
    whole = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    for later in ("step_00000010.ckpt", "last.ckpt"):
        (tmp_path / "run" / "checkpoints" / later).unlink()
    (tmp_path / "run" / "summary.json").unlink()
    path.rename(tmp_path / "gone")  # what was learned since is in the checkpoint
    train(config)
    again = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(again) == len(whole) == 12
    assert [row.split(",")[:3] for row in again] == [row.split(",")[:3] for row in whole]


def test_the_start_belongs_to_the_identity(tmp_path):
    plain, started = (small_run(tmp_path / "r", model=DecoderConfig(**SHAPE, init_from=x)) for x in (None, "gpt2"))
    assert plain.run_id() != started.run_id()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_layer": 3}, r"holds another model; add model\.n_layer=2$"),
        ({"attention_scale": 1.0}, r"holds another model; add model\.attention_scale=null$"),
        (
            {"norm": Norm.rmsnorm, "n_head": 4},
            r"add model\.n_head=2 model\.d_head=16 model\.n_kv_head=2 model\.norm=layernorm$",
        ),
        ({"context_length": 32}, r"add model\.context_length=24$"),
        ({"vocab_size": 300}, r"add model\.vocab_size=257$"),
    ],
    ids=str,
)
def test_weights_of_another_model_are_refused(options, message, tmp_path):
    path = BYTES.save(tmp_path / "theirs")
    given = OURS | options
    with pytest.raises(ValueError, match=message):
        train(small_run(tmp_path / "run", model=DecoderConfig(**given, init_from=str(path))))
    if "n_layer" in options:
        assert run_convert(f"from={path}", f"to={tmp_path / 'ours'}") == 0
        with pytest.raises(ValueError, match=message):
            train(small_run(tmp_path / "run2", model=DecoderConfig(**given, init_from=str(tmp_path / "ours"))))
    assert not (tmp_path / "run").exists() and not (tmp_path / "run2").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("./none", r"model\.init_from=./none does not exist; name a run folder"),
        ("empty", r"model\.init_from=empty is a folder that holds no model"),
        ("text.txt", r"text\.txt is damaged or no checkpoint"),
    ],
)
def test_weights_that_are_not_there_leave_no_run_behind(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    config = small_run(tmp_path / "run", model=DecoderConfig(**OURS, init_from=name))
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_config_yaml_of_an_import_says_where_it_came_from(tmp_path):
    path = CASES["gpt2"].save(tmp_path / "theirs")
    assert run_convert(f"from={path}", f"to={tmp_path / 'ours'}") == 0
    assert yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text())["model_tag"] == "gpt2"


def test_a_wrong_option_does_not_wait_for_torch():
    code = "import sys; from gptlab.cli import convert; print(convert.main(['form=x']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr


def test_a_tokenizer_of_another_run_is_refused(tmp_path, capsys):
    run = ran(tmp_path / "run")
    CharTokenizer("abc").save(run / "tokenizer.json")
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 2
    assert "tokenizer.json is not the tokenizer that" in capsys.readouterr().err
    (run / "tokenizer.json").unlink()
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    assert "the folder gets no tokenizer" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_a_checkpoint_beside_its_tokenizer(tmp_path, capsys):
    """As `gptlab generate` takes it; what else lies there belongs to others."""
    run = ran(tmp_path / "run")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "checkpoints" / "best.ckpt", alone / "mine.ckpt")
    shutil.copy(run / "tokenizer.json", alone)
    for name in ("metrics.csv", "summary.json"):
        shutil.copy(run / name, tmp_path)
        shutil.copy(run / name, alone)
    assert run_convert(f"from={alone / 'mine.ckpt'}", f"to={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file() and "gets no tokenizer" not in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# mine" in card and "val/loss" not in card and "text.txt" not in card.split("## Config")[0]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, capsys):
    run = ran(tmp_path / "run", model=DecoderConfig(**SHAPE, vocab_size=260))
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    content["added_tokens"] += [content["added_tokens"][0] | {"id": 257 + i, "content": f"<{i}>"} for i in range(9)]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run_convert(f"from={tmp_path / 'out'}", f"to={tmp_path / 'in'}") == 2
    assert "tokenizer.json has a vocabulary of 266 and the model one of 260" in capsys.readouterr().err
    assert generate.main([f"run={tmp_path / 'out'}", "prompt=a"]) == 2
    assert "tokenizer.json has a vocabulary of 266 and the model one of 260" in capsys.readouterr().err


def test_embeddings_beyond_the_tokenizer_are_not_drawn_from_an_export(tmp_path):
    run = ran(tmp_path / "run", model=DecoderConfig(**SHAPE, vocab_size=300, init_std=0.4))
    path = run / "checkpoints" / "best.ckpt"
    saved = checkpoint.load(path)
    drawn = torch.randn(saved.model["tok_emb.weight"].shape, generator=torch.Generator().manual_seed(0))
    weights = {**saved.model, "tok_emb.weight": drawn * torch.linspace(0.1, 3, 300)[:, None]}
    checkpoint.save(path, saved.state, weights)
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompt = torch.tensor([list(b"the of")])
    written = theirs.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=256)[0, 6:].tolist()
    trained = load_model(str(run))
    expected = decode.generate_tokens(trained.model, prompt, 10, temperature=0.0, vocab_size=257)[0, 6:].tolist()
    unbounded = decode.generate_tokens(trained.model, prompt, 10, temperature=0.0)[0, 6:].tolist()
    assert written == expected[: len(written)] and max(unbounded) > 256
    assert theirs.config.vocab_size == 300  # a loss is over the whole vocabulary


def test_weights_of_another_tokenizer_are_refused(tmp_path):
    """Same size, other vocabulary; the same vocabulary under another name is fine."""
    run = ran(tmp_path / "run")
    assert run_convert(f"from={run}", f"to={tmp_path / 'out'}") == 0
    assert run_convert(f"from={tmp_path / 'out'}", f"to={tmp_path / 'in'}") == 0
    file = TokenizerFileConfig(path=str(tmp_path / "out" / "tokenizer.json"))
    shuffled = json.loads(Path(file.path).read_text())
    vocab = shuffled["model"]["vocab"]
    a, b = list(vocab)[97:99]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (tmp_path / "shuffled.json").write_text(json.dumps(shuffled))
    other = TokenizerFileConfig(path=str(tmp_path / "shuffled.json"))
    for source, hint in (
        (run, f"tokenizer=file tokenizer.path={run / 'tokenizer.json'}"),
        (tmp_path / "out", f"tokenizer=file tokenizer.path={file.path}"),
        (tmp_path / "in", f"tokenizer=file tokenizer.path={tmp_path / 'in' / 'tokenizer.json'}"),
    ):
        model = DecoderConfig(**SHAPE, init_from=str(source))
        for tokenizer in (ByteConfig(), file):
            open_initial(model, 257, tokenizer.build(lambda: iter(())))
        with pytest.raises(ValueError) as refusal:
            train(small_run(tmp_path / "new", model=model, tokenizer=other))
        assert str(refusal.value).endswith(f"init_from={source} was trained with another tokenizer; add {hint}")
        assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"model\.init_from= is empty"):
        train(small_run(tmp_path / "new", model=DecoderConfig(**SHAPE, init_from="")))
    saved = checkpoint.load(run / "checkpoints" / "last.ckpt")
    checkpoint.save(tmp_path / "unknown" / "a.ckpt", replace(saved.state, tokenizer=""), saved.model)
    unknown = DecoderConfig(**SHAPE, init_from=str(tmp_path / "unknown" / "a.ckpt"))
    open_initial(unknown, 257, CharTokenizer("abc"))
    with pytest.raises(
        ValueError, match=r"add model\.vocab_size=257 and a tokenizer with a vocabulary no larger than that"
    ):
        open_initial(unknown, 300, CharTokenizer("".join(map(chr, range(300)))))
