"""`gptlab generate`, in this process and once as a process of its own."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from enum import Enum

import pytest
import torch
from interop.external import Case, gpt2
from small_runs import write_run
from torch import nn
from warm_python import warm_python

from gptlab.cli.generate import HELP, main
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.generation.beam import beam_search
from gptlab.generation.config import NUM_DRAFT_TOKENS, SEED, GenerateConfig, Precision
from gptlab.generation.decode import generate_tokens
from gptlab.generation.precision import prepare
from gptlab.generation.sampling import Sampling
from gptlab.interop.tokenizer_files import tokenizer_files
from gptlab.models.decoder.config import Position
from gptlab.runs import checkpoint
from gptlab.runs.load import load_model

CONTEXT = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", position=Position.rotary)


@pytest.fixture
def say(run, capsys):
    def say(*options, expect=0, where=run):
        code = main([f"run={where}", *options])
        out, err = capsys.readouterr()
        assert code == expect, err
        return out, err

    return say


@pytest.fixture
def answers(say):
    def answers(*options, **how):
        out, _ = say(*options, "output=json", **how)
        return json.loads(out)["results"]

    return answers


def test_prints_what_the_model_generates(run, say, answers):
    model, tokenizer, _ = load_model(str(run), "run")
    expected = generate_tokens(model, torch.tensor([list(b"hello ")]), 60, temperature=0.0, vocab_size=257)[
        0, 6:
    ].tolist()
    cut = expected.index(256) + 1 if 256 in expected else 60
    (found,) = answers("prompt=hello ", "temperature=0", "max_new_tokens=60")
    assert found["tokens"] == expected[:cut]
    text = tokenizer.decode([token for token in found["tokens"] if token != 256])
    assert found["text"] == text and found["prompt"] == "hello "
    out, err = say("prompt=hello ", "temperature=0", "max_new_tokens=60")
    assert out == f"hello {text}\n"
    assert err.endswith(" tokens/s\n") and f"{cut} tokens in " in err
    assert answers("prompt=hello ", "temperature=0", "max_new_tokens=60", where=run / "checkpoints" / "best.ckpt") == [
        found
    ]


def test_prompts_from_options_files_and_standard_input(answers, tmp_path, monkeypatch):
    options = ("temperature=0", "max_new_tokens=9")
    one, two = answers("prompt=a = b", "prompt=longer than that\n", *options)
    assert [one["prompt"], two["prompt"]] == ["a = b", "longer than that\n"]
    assert answers("prompt=a = b", *options) == [one]
    (tmp_path / "prompt.txt").write_text("longer than that\n\n")
    assert answers(f"prompt_file={tmp_path / 'prompt.txt'}", *options) == [two]
    (tmp_path / "prompts.jsonl").write_text('"a = b"\n\n{"prompt": "longer than that\\n"}\n')
    assert answers(f"prompt_file={tmp_path / 'prompts.jsonl'}", *options) == [one, two]
    standard_input(monkeypatch, b"a = b\n")
    assert answers(*options) == [one]


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_prompt_is_read_as_it_is(answers, say, tmp_path, monkeypatch):
    options = ("temperature=0", "max_new_tokens=2")
    typed = answers(r"prompt=a\n\tb \\n", *options)
    assert typed[0]["prompt"] == "a\n\tb \\n"
    assert answers("prompt=x", r"stop=\n", *options)[0]["prompt"] == "x"
    content = "a\r\nb\\n\u00e9\r\n".encode()
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "my prompt.txt").write_bytes(start + content)
        (found,) = answers(f"prompt_file={tmp_path / 'my prompt.txt'}", *options)
        assert found["prompt"] == "a\r\nb\\n\u00e9"  # line ends as they are, and nothing is unescaped
        standard_input(monkeypatch, start + content)
        assert answers(*options) == [found]
    (tmp_path / "two.jsonl").write_bytes(b'\xef\xbb\xbf"a"\r\n{"prompt": "b\\r\\n"}\r\n')
    assert [row["prompt"] for row in answers(f"prompt_file={tmp_path / 'two.jsonl'}", *options)] == ["a", "b\r\n"]
    standard_input(monkeypatch, b"a\xff")
    assert "standard input is not UTF-8 text: the byte at 1" in say(expect=2)[1]
    assert (
        f"prompt_file={tmp_path} cannot be read: Is a directory; name a text file"
        in say(f"prompt_file={tmp_path}", expect=2)[1]
    )
    (tmp_path / "empty.txt").write_bytes(b"\r\n")
    assert "the prompt is empty" in say(f"prompt_file={tmp_path / 'empty.txt'}", expect=2)[1]


def test_probabilities_in_percent(run, answers, say):
    options = ("prompt=ab", "max_new_tokens=3", "top_k=2", "temperature=0.5", "seed=4")
    (found,) = answers(*options, "probabilities=4")
    model, *_ = load_model(str(run), "run")
    for i, step in enumerate(found["probabilities"]):
        logits = model(torch.tensor([list(b"ab") + found["tokens"][:i]]))[0, -1, :257]
        p = torch.softmax(logits, -1)
        assert [token["token"] for token in step["tokens"]][:4] == p.topk(4).indices.tolist()
        ids = [token["token"] for token in step["tokens"]]
        assert step["stages"]["model"] == pytest.approx(p[ids].tolist(), abs=1e-5)
        two = torch.softmax(2 * logits.topk(2).values, -1).tolist()
        assert step["stages"]["top_k=2"] == pytest.approx([*two, *[0.0] * (len(ids) - 2)], abs=1e-5)
        assert list(step["stages"]) == ["model", "temperature=0.5", "top_k=2"] and step["token"] == found["tokens"][i]
    out, _ = say(*options, "probabilities=4")
    assert out.count("all others") == 3 and f"{100 * two[0]:.2f}%" in out
    header, *rows = out.split("\n\n")[0].splitlines()
    assert header.split() == ["token", "1", "model", "temperature=0.5", "top_k=2"]
    assert sum(row.startswith("* ") for row in rows) == 1 and len(rows) == 5
    (drafted,) = answers(*options, "probabilities=4", f"draft_model={run}")
    assert len(drafted["probabilities"]) == 3
    assert "leave out one of them" in say(*options, "probabilities=4", "logprobs=2", expect=2)[1]


def test_a_text_that_outgrows_the_context_is_noted(say):
    _, err = say("prompt=abc", f"max_new_tokens={CONTEXT}", "temperature=0.1", "seed=2")
    n = int(re.search(r"(\d+) tokens? in", err)[1])
    assert ("note: the text grew beyond the context of 24 tokens" in err) == (3 + n > CONTEXT)
    assert "note:" not in say("prompt=abc", "max_new_tokens=5")[1]


def test_what_is_generated_before_an_interruption_is_shown(run, capsys, monkeypatch):
    from gptlab.generation import text

    original = text.decode

    def decode(*arguments, **options):
        for number, draws in enumerate(original(*arguments, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield draws

    monkeypatch.setattr(text, "decode", decode)
    options = [f"run={run}", "prompt=ab", "temperature=0", "max_new_tokens=9"]
    assert main([*options, "output=json"]) == 130
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert len(found["tokens"]) == 3 and found["finished"] is None
    assert main(options) == 130
    assert capsys.readouterr().out == f"ab{found['text']}\n"


def test_samples_and_seeds(answers, say):
    options = ("prompt=x", "prompt=yy", "num_return_sequences=3", "max_new_tokens=12")
    found = answers(*options, "seed=1")
    assert [row["prompt"] for row in found] == ["x"] * 3 + ["yy"] * 3
    assert len({tuple(row["tokens"]) for row in found}) == 6
    assert answers(*options, "seed=1") == found != answers(*options, "seed=2")
    out, _ = say(*options, "seed=1")
    blocks = dict(block.split(" ---\n")[0].split("\n", 1) for block in ("\n" + out).split("\n--- ")[1:])
    assert set(blocks) == {f"prompt {p}, sequence {s}" for p in (1, 2) for s in (1, 2, 3)}


def test_ends_at_stop_strings_and_end_of_text(answers):
    options = ("prompt=q", "temperature=1", "max_new_tokens=200", "num_return_sequences=6")
    whole = answers(*options)
    for row in whole:
        assert row["finished"] == ("end_of_text" if row["tokens"][-1] == 256 else "length")
    stop = next(row["text"][9:12] for row in whole if len(row["text"]) > 30 and row["text"][9:12].isprintable())
    for row, full in zip(answers(*options, f"stop={stop}", "stop=never there"), whole, strict=True):
        assert row["text"] == full["text"].split(stop)[0]
        if stop in full["text"]:
            assert row["finished"] == "stop" and len(row["tokens"]) <= len(full["tokens"])


def test_beams(run, answers):
    model, *_ = load_model(str(run), "run")
    expected = beam_search(
        model,
        list(b"ab"),
        10,
        num_beams=4,
        num_return_sequences=2,
        length_penalty=0.5,
        vocab_size=257,
        ends=lambda t: t[-1] == 256,
    )
    found = answers("prompt=ab", "num_beams=4", "num_return_sequences=2", "length_penalty=0.5", "max_new_tokens=10")
    assert [row["tokens"] for row in found] == [beam.tokens for beam in expected]
    assert [row["score"] for row in found] == pytest.approx([beam.score for beam in expected], abs=1e-4)


def test_more_answers_than_a_search_can_find(say):
    _, err = say("prompt=a", "num_beams=300", "num_return_sequences=300", "max_new_tokens=1", expect=2)
    assert (
        "num_return_sequences=300 is more than the 257 sequences that the search found; use num_return_sequences=257"
        in err
    )
    say("prompt=a", "num_beams=300", "num_return_sequences=257", "max_new_tokens=1")


def test_help_has_the_defaults():
    config, sampling = GenerateConfig(), Sampling()
    nulls = {
        "temperature": sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
        "length_penalty": 1,
        "seed": SEED,
        "num_draft_tokens": NUM_DRAFT_TOKENS,
    }
    sections = re.split(r"\n    (?=\w)", HELP)[1:]
    shown = {}
    for section in sections:
        keys = section.strip().split("  ")[0].split("\n")[0].split()
        assert set(keys) <= {f.name for f in fields(config)} | {"plugins"}, keys
        default = re.search(r"\(([^()]*)\)(?:; [^()]*)?$", section.strip())
        shown |= dict.fromkeys(keys, default and default[1])
    assert shown.keys() == {f.name for f in fields(config)} | {"plugins"}
    del shown["plugins"]
    for name, text in shown.items():
        value = getattr(config, name)
        value = nulls.get(name) if value is None else value
        if text is None or name in ("run", "device", "draft_model"):
            assert value in (None, []), f"the help does not have {name}={value}"
        else:
            assert text == (value.value if isinstance(value, Enum) else f"{value:g}")


def test_log_probabilities(answers, say):
    options = ("prompt=ab", "logprobs=5", "max_new_tokens=4", "temperature=0")
    (found,) = answers(*options)
    for step, token in zip(found["logprobs"], found["tokens"], strict=True):
        assert step["token"] == token == step["top"][0]["token"] and len(step["top"]) == 5
        assert step["log_p"] == step["top"][0]["log_p"] < 0
    out, _ = say(*options)
    assert len(out.splitlines()) == 4 and f"{found['logprobs'][0]['log_p']:.4f}" in out


def test_a_draft_model_changes_nothing_but_time(answers, tmp_path):
    draft = write_run(tmp_path / "draft", n_layer=1, seed=5)
    options = ("prompt=ab", "prompt=c", "temperature=0", "max_new_tokens=40")
    plain = answers(*options)
    assert answers(*options, f"draft_model={draft}", "num_draft_tokens=3") == plain
    assert len(answers("prompt=ab", "num_return_sequences=2", f"draft_model={draft}")) == 2


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(run, answers, precision):
    assert len(answers("prompt=ab", f"precision={precision}", "max_new_tokens=30", "num_return_sequences=2")) == 2
    kind = Precision(precision)
    model = prepare(load_model(str(run), "run")[0], kind, torch.device("cpu"))
    if kind is Precision.int8:
        assert not any(isinstance(module, nn.Linear) for module in model.modules())
    else:
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = load_model(str(run), "run")[0]
    tokens = torch.tensor([list(b"some text")])
    expected, found = exact(tokens), model.head.logits(model.hidden_states(tokens)).float()
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_a_model_with_a_larger_vocabulary_than_its_tokenizer(answers, tmp_path):
    folder = write_run(tmp_path / "run", tokenizer=CharTokenizer("abc"), vocab_size=16)
    (found,) = answers("prompt=ab", "temperature=9", "max_new_tokens=100", where=folder)
    assert set(found["tokens"]) == {0, 1, 2} and len(found["text"]) == 100


def test_a_transformers_folder(answers, say, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    case = Case("GPT2Config", gpt2(vocab_size=256, n_positions=64, bos_token_id=None, eos_token_id=None))
    theirs = case.model()
    theirs.save_pretrained(tmp_path)
    _, err = say("prompt=a", expect=2, where=tmp_path)
    assert "has no tokenizer that can be read" in err
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = tokenizers.decoders.ByteLevel()
    bytes_alone.save(str(tmp_path / "tokenizer.json"))
    prompt = bytes_alone.encode("some text").ids
    expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt) :]
    (found,) = answers("prompt=some text", "temperature=0", "max_new_tokens=20", where=tmp_path)
    assert found["tokens"] == expected.tolist()


def test_wrong_options_and_values(say, tmp_path):
    for option, message in (
        ("temprature=1", "unknown option temprature of gptlab generate; did you mean temperature?"),
        ("beams=2", "unknown option beams of gptlab generate; did you mean num_beams?"),
        ("n_tokens=2", "unknown option n_tokens of gptlab generate; did you mean max_new_tokens?"),
        ("max_new_tokens=many", "max_new_tokens=many must be a whole number"),
        ("top_p=high", "top_p=high must be a number"),
        ("max_new_tokens", "max_new_tokens needs a value"),
        ("max_new_tokens=0", "max_new_tokens=0 must be at least 1"),
        ("num_return_sequences=0", "num_return_sequences=0 must be at least 1"),
        ("seed=1 seed=2", "seed= is given twice"),
        ("temperature=-1", "temperature=-1.0 must be at least 0"),
        ("top_p=0", "top_p=0.0 is outside (0, 1]"),
        ("top_k=0", "top_k=0 must be at least 1"),
        ("precision=fp8", "precision=fp8 is unknown; known: 32, bf16, int8"),
        ("output=xml", "output=xml is unknown; known: text, json"),
        ("device=tpu9", "device=tpu9 cannot be used"),
        ("stop=", "stop has an empty text"),
        ("prompt=", "the prompt is empty"),
        ("prompt=a prompt=", "prompt 2 of 2 is empty"),
        ("prompt=a prompt=" + "x" * 30, "prompt 2 of 2 has 30 tokens and the model's context holds 24"),
        ("prompt=" + "x" * 30, "the prompt has 30 tokens and the model's context holds 24; leave out at least 6"),
        ("num_beams=2 temperature=1", "temperature= has no effect on beam search"),
        ("num_beams=2 seed=1", "seed= has no effect on beam search"),
        ("temperature=0 top_k=4", "top_k=4 has no effect at temperature=0"),
        ("temperature=0 min_p=0.1", "min_p=0.1 has no effect at temperature=0"),
        ("num_beams=2 length_penalty=nan", "length_penalty=nan is too large"),
        ("num_beams=2 length_penalty=-1e5", "length_penalty=-100000.0 is too large for sequences of 100 tokens"),
        (f"seed={2**64}", f"seed={2**64} is outside"),
        ("device=meta", "device=meta holds no values; use cpu"),
        ("num_beams=2 num_return_sequences=3", "num_return_sequences=3 is more than num_beams=2 can give"),
        ("length_penalty=1", "length_penalty= is an option of beam search"),
        ("num_draft_tokens=1", "num_draft_tokens= is an option of speculative decoding"),
        (f"prompt_file={tmp_path}/none", "prompt= and prompt_file= are both given"),
    ):
        prompt = () if option.startswith("prompt=") else ("prompt=a",)
        out, err = say(*prompt, *option.split(" "), expect=2)
        assert out == "" and err.startswith(f"error: {message}"), err


def test_prompt_files_that_cannot_be_read(say, tmp_path):
    (tmp_path / "rows.jsonl").write_text('"fine"\n[1]\n')
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xff")
    for name, message in (
        ("absent", "cannot be read: No such file"),
        ("bytes.txt", "is not UTF-8 text: the byte at 0; convert"),
        ("none.jsonl", "has no prompt"),
        ("rows.jsonl", "line 2: use a JSON string"),
    ):
        _, err = say(f"prompt_file={tmp_path / name}", expect=2)
        assert err.startswith("error: ") and message in err
    _, err = say("prompt_file=", expect=2)
    assert "prompt_file= is empty; name a file" in err


def test_prompt_files_of_other_programs(answers, tmp_path):
    """A mark of the byte order is no text, and a separator within a JSON string ends no line."""
    (tmp_path / "prompts.jsonl").write_bytes(b'\xef\xbb\xbf"a\xe2\x80\xa8b"\r\n{"prompt": "c"}\r\n')
    found = answers(f"prompt_file={tmp_path / 'prompts.jsonl'}", "max_new_tokens=1")
    assert [row["prompt"] for row in found] == ["a\u2028b", "c"]
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfabc\n")
    (found,) = answers(f"prompt_file={tmp_path / 'prompt.txt'}", "max_new_tokens=1")
    assert found["prompt"] == "abc"


def test_models_that_cannot_be_read(run, say, tmp_path):
    alone = tmp_path / "alone" / "checkpoints" / "last.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    other = write_run(tmp_path / "other", tokenizer=CharTokenizer("abc"))
    mixed = write_run(tmp_path / "mixed")
    (mixed / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"no checkpoint")
    for where, message in (
        (alone, f"has no tokenizer: there is no {tmp_path / 'alone' / 'tokenizer.json'}; put"),
        (mixed, "is not the tokenizer that"),
        (damaged, "is damaged or no checkpoint"),
        (tmp_path, "holds no model"),
    ):
        _, err = say("prompt=a", expect=2, where=where)
        assert err.startswith("error: ") and message in err, err
    _, err = say("prompt=a", f"draft_model={other}", expect=2)
    assert "has a vocabulary of 3 and the model one of 257; use two trained with the same tokenizer" in err
    shuffled = CharTokenizer("".join(map(chr, range(300, 557))))
    _, err = say("prompt=a", f"draft_model={write_run(tmp_path / 'shuffled', tokenizer=shuffled)}", expect=2)
    assert "has another tokenizer than run=" in err


def test_without_arguments_it_explains_itself(capsys):
    assert main([]) == 0
    assert "run=PATH" in capsys.readouterr().out
    assert main(["prompt=a"]) == 2
    assert "needs run=PATH" in capsys.readouterr().err


def test_as_a_process(run):
    """Text from standard input; nothing but JSON on standard output; no trainer imported."""
    program = (
        "import sys; from gptlab.cli.generate import main; code = main(sys.argv[1:]);"
        "assert not {'lightning', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    options = [f"run={run}", "output=json", "max_new_tokens=5", "temperature=0"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        input="from a pipe\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["prompt"] == "from a pipe"


def test_a_terminal_that_knows_few_characters(run):
    """What it cannot show is replaced; JSON spells it in ASCII."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def written(*options):
        program = "import sys; from gptlab.cli.generate import main; sys.exit(main(sys.argv[1:]))"
        options = [f"run={run}", "prompt=na\u00efve", "max_new_tokens=2", *options]
        command = [warm_python(), "-c", program, *options]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("ascii")

    assert written().startswith("na?ve")
    assert written("prompt=\udcff", "output=json").count("\\udcff") == 1  # a byte that is no UTF-8
    assert json.loads(written("output=json"))["results"][0]["prompt"] == "na\u00efve"


def test_a_tokenizer_of_the_library_beside_a_checkpoint(run, answers, tmp_path):
    """The tokens of a run are the same in the file that transformers reads."""
    expected = answers("prompt=ab", "max_new_tokens=9")
    saved = checkpoint.load(run / "checkpoints" / "best.ckpt")
    checkpoint.save(tmp_path / "mine.ckpt", replace(saved.state, tokenizer=""), saved.model)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_files(ByteTokenizer(), 24)["tokenizer.json"]))
    assert answers("prompt=ab", "max_new_tokens=9", where=tmp_path / "mine.ckpt") == expected
