"""GPT-2 as OpenAI released it: written here with TensorFlow, read through `gptlab convert`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from interop.external import Case, gpt2, memory_taken, run_convert, write_older_tokenizer
from small_runs import small_run

from gptlab.cli import generate
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.config import TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.interop.openai_checkpoint import OpenAIFolder
from gptlab.interop.tokenizer_files import tokenizer_files
from gptlab.models.build import build_model
from gptlab.models.config import model_from_plain
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.training.loop import train

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom; naïve 1859.\n"
TOKENIZER = BPETokenizer.train(290, [TEXT * 9])
# The eps that OpenAI's code holds fixed.
GPT2 = Case("GPT2Config", gpt2(vocab_size=TOKENIZER.vocab_size, n_embd=24, n_head=3, layer_norm_epsilon=1e-5))


def released(model) -> dict[str, torch.Tensor]:
    """The tensors of transformers' GPT-2 under the names and in the shapes of openai/gpt-2, src/model.py."""
    own = model.transformer
    tensors = {"model/wte": own.wte.weight, "model/wpe": own.wpe.weight}
    tensors |= {"model/ln_f/g": own.ln_f.weight, "model/ln_f/b": own.ln_f.bias}
    for i, block in enumerate(own.h):
        for name in ("ln_1", "ln_2"):
            norm = getattr(block, name)
            tensors |= {f"model/h{i}/{name}/g": norm.weight, f"model/h{i}/{name}/b": norm.bias}
        for part, names in (("attn", ("c_attn", "c_proj")), ("mlp", ("c_fc", "c_proj"))):
            for name in names:
                layer = getattr(getattr(block, part), name)
                tensors |= {
                    f"model/h{i}/{part}/{name}/w": layer.weight[None],
                    f"model/h{i}/{part}/{name}/b": layer.bias,
                }
    return {name: tensor.detach() for name, tensor in tensors.items()}


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint as OpenAI's; without TensorFlow the test is skipped, and no collection waits for its import."""
    tensorflow = pytest.importorskip("tensorflow", reason='needs TensorFlow: pip install "gptlab[openai]"')
    tensorflow.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tensor.numpy() for tensor in tensors.values()],
    )


def write_hparams(folder: Path, **other) -> None:
    options = GPT2.options
    hparams = {"n_vocab": options["vocab_size"], "n_ctx": options["n_positions"]}
    hparams |= {name: options[name] for name in ("n_embd", "n_head", "n_layer")}
    (folder / "hparams.json").write_text(json.dumps({k: v for k, v in (hparams | other).items() if v is not None}))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "124M"
    path.mkdir()
    write_tensors(path, released(GPT2.model()))
    write_hparams(path)
    write_older_tokenizer(path, TOKENIZER, "encoder.json", "vocab.bpe")
    (path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    (path / "model.ckpt.meta").write_bytes(b"the graph, which nobody needs")
    return path


@pytest.mark.parametrize("options", [(), ("format=openai",), ("format=gptlab",)], ids=str)
def test_it_computes_what_transformers_computes(options, folder, tmp_path, capsys):
    assert run_convert(f"from={folder}", f"to={tmp_path / 'ours'}", *options) == 0
    assert capsys.readouterr().out.endswith("as gptlab\n")
    saved = checkpoint.load(tmp_path / "ours" / "checkpoints" / "last.ckpt")
    ours = build_model(model_from_plain(saved.state.config["model"]), TOKENIZER.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(saved.model))
    tokens = torch.randint(TOKENIZER.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = GPT2.model()(tokens).logits
        assert (ours(tokens) - reference).abs().max() <= 1e-4 * reference.abs().max()
    assert yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text())["model_tag"] == "gpt2"


def test_every_number_and_every_word_arrives(folder, tmp_path):
    assert run_convert(f"from={folder}", f"to={tmp_path / 'ours'}", "format=openai") == 0
    assert run_convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'theirs'}") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tensors, arrived = released(GPT2.model()), released(again)
    assert tensors.keys() == arrived.keys()
    for name, value in tensors.items():
        assert torch.equal(arrived[name], value), name
    vocab, merges = json.loads((folder / "encoder.json").read_text()), (folder / "vocab.bpe").read_text().splitlines()
    original = transformers.GPT2Tokenizer(vocab=vocab, merges=[tuple(line.split()) for line in merges[1:]])
    ours, theirs = (
        load_tokenizer(tmp_path / "ours/tokenizer.json"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs"),
    )
    assert ours.eot == theirs.eos_token_id == vocab["<|endoftext|>"]
    for text in (TEXT, "  the\n\n naïve 東京 times'll ", "wisdom"):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"] == original(text)["input_ids"]


def test_it_can_be_trained_on_and_written_with(folder, tmp_path, capsys):
    shape = {"n_layer": 3, "n_head": 3, "d_model": 24, "context_length": 16, "vocab_size": TOKENIZER.vocab_size}
    model = DecoderConfig(**shape, init_from=str(folder))
    content = tokenizer_files(TOKENIZER, 16)["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = TokenizerFileConfig(path=str(tmp_path / "tokenizer.json"))
    train(small_run(tmp_path / "run", model=model, tokenizer=tokenizer, budget_steps=2))
    with pytest.raises(ValueError, match="124M was trained with another tokenizer; add tokenizer=gpt2"):
        train(small_run(tmp_path / "other", model=model, budget_steps=2))
    capsys.readouterr()
    assert generate.main([f"run={folder}", "prompt=It was", "max_new_tokens=5", "temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("It was")


def test_without_a_tokenizer_it_says_so(folder, tmp_path, capsys):
    (folder / "vocab.bpe").unlink()
    assert run_convert(f"from={folder}", f"to={tmp_path / 'ours'}") == 0
    assert "124M has no tokenizer that can be read: the checkpoint gets no tokenizer" in capsys.readouterr().out
    assert not (tmp_path / "ours" / "tokenizer.json").exists()


def tensors_without(folder, *starts):
    write_tensors(folder, {k: v for k, v in released(GPT2.model()).items() if not k.startswith(starts)})


def tensors_with(folder, **other):
    write_tensors(folder, released(GPT2.model()) | {k.replace("__", "/"): v for k, v in other.items()})


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


DAMAGES = {
    "no options": (
        lambda folder: (folder / "hparams.json").unlink(),
        "is not a checkpoint of GPT-2 as OpenAI released it: it lacks hparams.json; name the folder",
    ),
    "no weights": (
        lambda folder: [path.unlink() for path in folder.glob("model.ckpt.*")],
        "it lacks model.ckpt.index, model.ckpt.data-00000-of-00001;",
    ),
    "no JSON": (lambda folder: (folder / "hparams.json").write_text("{"), "hparams.json cannot be read"),
    "key missing": (
        lambda folder: write_hparams(folder, n_ctx=None),
        "hparams.json: n_ctx is missing; OpenAI's files have n_vocab, n_ctx, n_embd, n_head, n_layer",
    ),
    "unknown": (lambda folder: write_hparams(folder, res_dropout=0.1), "hparams.json: res_dropout is unknown;"),
    "no number": (
        lambda folder: write_hparams(folder, n_layer=2.5),
        "hparams.json: n_layer=2.5 must be a whole number of at least 1",
    ),
    "heads": (lambda folder: write_hparams(folder, n_head=5), "hparams.json: model.d_model=24 is not divisible"),
    "missing": (
        lambda folder: tensors_without(folder, "model/h1/ln_1/b"),
        "lacks 1 tensor of a gpt2 model: model/h1/ln_1/b\n",
    ),
    "many missing": (
        lambda folder: tensors_without(folder, "model/h0"),
        "lacks 12 tensors of a gpt2 model: model/h0/attn/c_attn/b, model/h0/attn/c_attn/w, model/h0/attn/c_proj/b, "
        "model/h0/attn/c_proj/w, model/h0/ln_1/b and 7 more\n",
    ),
    "extra": (
        lambda folder: tensors_with(folder, global_step=torch.tensor(3)),
        "has 1 tensor that a gpt2 model does not: global_step\n",
    ),
    "another depth": (
        lambda folder: write_hparams(folder, n_layer=2),
        "has 12 tensors that a gpt2 model does not: model/h2/attn/c_attn/b, ",
    ),
    "shape": (
        lambda folder: tensors_with(folder, model__h2__mlp__c_fc__w=torch.ones(1, 24, 95)),
        "model/h2/mlp/c_fc/w has the shape (24, 95), and hparams.json implies (24, 96)\n",
    ),
    "whole numbers": (
        lambda folder: tensors_with(folder, model__wpe=torch.ones(24, 24, dtype=torch.int32)),
        "holds int32, and weights are floating-point numbers",
    ),
    "index": (
        lambda folder: damage(folder / "model.ckpt.index", lambda content: content.__delitem__(slice(30, None))),
        "model.ckpt.index is damaged or no TensorFlow checkpoint (",
    ),
    "cut off": (
        lambda folder: damage(
            folder / "model.ckpt.data-00000-of-00001", lambda content: content.__delitem__(slice(99, None))
        ),
        "model.ckpt, which is damaged (IndexError: Read less bytes than requested); download it again",
    ),
    "one bit": (
        lambda folder: damage(
            folder / "model.ckpt.data-00000-of-00001", lambda content: content.__setitem__(999, content[999] ^ 1)
        ),
        "Checksum does not match",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_model_is_refused(name, folder, tmp_path, capsys):
    spoil, message = DAMAGES[name]
    spoil(folder)
    assert run_convert(f"from={folder}", f"to={tmp_path / 'ours'}", "format=openai") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["124M"]


def test_contradictions_are_refused(folder, tmp_path, capsys):
    target = tmp_path / "out"
    assert run_convert(f"from={folder}", f"to={target}", "format=transformers") == 2
    error = capsys.readouterr().err
    assert f"type gptlab convert from={folder} to=runs/gpt2 and gptlab convert from=runs/gpt2 to={target}" in error
    theirs = GPT2.save(tmp_path / "theirs")
    assert run_convert(f"from={theirs}", f"to={target}", "format=openai") == 2
    assert "it lacks hparams.json, model.ckpt.index, model.ckpt.data-00000-of-00001;" in capsys.readouterr().err
    assert run_convert(f"from={tmp_path / 'none'}", f"to={target}", "format=openai") == 2
    assert "none is not a checkpoint of GPT-2" in capsys.readouterr().err


def test_without_tensorflow_it_says_what_to_install(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert run_convert(f"from={folder}", f"to={tmp_path / 'ours'}") == 2
    assert 'type pip install "gptlab[openai]"' in capsys.readouterr().err


@pytest.mark.slow
def test_tensorflow_comes_only_when_it_is_needed_and_says_nothing(folder, tmp_path):
    code = "import sys; from gptlab.cli.convert import main; main(sys.argv[1:]); print('tensorflow' in sys.modules)"
    for source, needed in ((GPT2.save(tmp_path / "theirs"), False), (folder, True)):
        arguments = [f"from={source}", f"to={tmp_path / f'ours {needed}'}"]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == str(needed) and not done.stderr


@pytest.mark.slow  # a minute: TensorFlow in a process of its own
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_near_the_weights(tmp_path):
    large = Case("GPT2Config", gpt2(vocab_size=4000, n_positions=256, n_layer=24, n_head=6, n_embd=384))
    write_tensors(tmp_path, released(large.model()))
    write_hparams(tmp_path, n_vocab=4000, n_ctx=256, n_layer=24, n_head=6, n_embd=384)
    size = sum(value.numel() * 4 for _, value in OpenAIFolder(tmp_path).tensors())
    assert memory_taken(tmp_path, tmp_path / "ours", tensorflow=True) < 1.3 * size
