"""The code that is written beside exported models, where only torch and transformers are: held to our own models."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.resources import files

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gptlab import compose
from gptlab.composition import preset_names
from gptlab.errors import UserError
from gptlab.generation import decode
from gptlab.interop.transformers_folder import TransformersFolder, architecture_for, write_folder
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import Capability, Feedforward, ModelConfig, model_from_plain
from gptlab.models.decoder.config import (
    AttentionPattern,
    DecoderConfig,
    Norm,
    NormPlacement,
    Position,
    RopeType,
    RouterSoftmax,
)
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

VOCAB_SIZE, CONTEXT, N_PROMPT, N_NEW = 61, 24, 6, 12
SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 32, "context_length": CONTEXT}
SLIDING = {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 5}
EXPERTS = {"n_expert": 4, "n_expert_per_token": 2}

# Together they have every value of every key that changes what a model computes, but for token_shift, which is refused.
ODD = {
    "relu2_QK_norm_capped": DecoderConfig(
        **SHAPE,
        position=Position.rotary,
        rope_theta=50.0,
        rope_type=RopeType.yarn,
        rope_factor=3.0,
        norm=Norm.rmsnorm,
        norm_eps=0.03,
        feedforward=Feedforward.relu2,
        bias=False,
        qk_norm=True,
        tie_embeddings=False,
        logit_softcap=3.0,
    ),
    "alternating": DecoderConfig(**SHAPE, attention_pattern=AttentionPattern.alternating, attention_window=5),
    "sinusoidal": DecoderConfig(**SHAPE, position=Position.sinusoidal),
    "post_norm_sliding_no_positions": DecoderConfig(
        **SHAPE,
        **SLIDING,
        position=Position.none,
        norm_placement=NormPlacement.post,
        n_kv_head=2,
        d_head=10,
        d_ff=30,
        attention_scale=0.3,
        qkv_bias=False,
        feedforward=Feedforward.gelu_exact,
    ),
    "experts_biases": DecoderConfig(
        **SHAPE, **EXPERTS, n_shared_expert=2, router_softmax=RouterSoftmax.before, feedforward=Feedforward.geglu
    ),
    "experts_rotary": DecoderConfig(
        **SHAPE,
        **EXPERTS,
        **SLIDING,
        position=Position.rotary,
        rope_type=RopeType.llama3,
        rope_factor=2.0,
        feedforward=Feedforward.relu,
        bias=False,
        qkv_bias=True,
    ),
    "rotary_linear": DecoderConfig(**SHAPE, position=Position.rotary, rope_type=RopeType.linear, rope_factor=2.0),
    "rotary_ntk": DecoderConfig(**SHAPE, position=Position.rotary, rope_type=RopeType.ntk, rope_factor=2.0),
    "swiglu_encoder": EncoderConfig(**SHAPE, feedforward=Feedforward.swiglu),
    "wide_heads_masked_lm": EncoderConfig(**SHAPE, d_head=5, n_segment=3, norm_eps=0.02, heads=Heads.masked_lm),
    "relu_encoder_without_heads": EncoderConfig(**SHAPE, feedforward=Feedforward.relu, heads=Heads.none),
}
CLASSIFIERS = {
    "classes_of_a_decoder": DecoderConfig(**SHAPE, **EXPERTS),
    "classes_of_an_encoder": ODD["swiglu_encoder"],
}
CLASSES = ["good", "bad", "so so"]


def toy(config: ModelConfig) -> ModelConfig:
    """The preset's kind of model at a small shape."""
    small = {"vocab_size": None, **SHAPE, "d_head": None, "dropout": 0.0}
    small["d_ff"] = None if config.d_ff is None else 30
    if isinstance(config, DecoderConfig):
        small["n_kv_head"] = 2 if config.n_kv_head is not None else None
        small["attention_window"] = None if config.attention_window is None else 5
        small["n_expert"] = None if config.n_expert is None else 4
    if isinstance(config, EncoderDecoderConfig):
        small["n_decoder_layer"] = None
    return replace(config, **small)


NAMES = [name.replace(".", "_") for name in preset_names()["model"]]


@cache
def presets() -> dict[str, ModelConfig]:
    """Each different toy shape once, under the names of the presets that have it."""
    found: list[tuple[list[str], ModelConfig]] = []
    for name, real in zip(NAMES, preset_names()["model"], strict=True):
        # Without Hydra, which takes half a second for each: no preset of a model refers to anything but its schema.
        file = yaml.safe_load((files("gptlab.conf") / "model" / f"{real}.yaml").read_text())
        kind = file["defaults"][0].removeprefix("/schema/model/").removesuffix("@model")
        config = toy(model_from_plain({"type": kind, **file["model"]}))
        same = next((names for names, other in found if other == config), None)
        if same is None:
            found.append(([name], config))
        else:
            same.append(name)
    return {"__".join(names): config for names, config in found}


def written(path, config, seed=0, class_names=()):
    """A folder of a model with random weights, and beside it what our model answers."""
    model = shape_model(config, VOCAB_SIZE, len(class_names) or None).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            gain = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(gain + 0.3 * torch.randn(value.shape, generator=generator))
    for module in model.modules():
        if hasattr(module, "fill"):
            module.fill()
    path.mkdir()
    write_folder(path, config, model.state_dict().__getitem__, None, card="", class_names=class_names)
    tokens = torch.randint(1, VOCAB_SIZE, (2, CONTEXT), generator=generator)
    mask = torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [CONTEXT - 7]])
    expected = {"tokens": tokens, "mask": mask.long()}
    found = config.capabilities
    with torch.no_grad():
        if Capability.encoder_decoder in found:
            expected["logits"] = model(tokens, source=tokens.flip(1), source_mask=mask)
        elif class_names:
            hidden = model.hidden_states(tokens, attention_mask=mask)
            causal = Capability.causal in found
            pooled = hidden[torch.arange(2), mask.sum(1) - 1] if causal else model.pooled(hidden)
            expected["classes"] = model.class_head(pooled)
        elif Capability.causal in found:
            expected["logits"] = model(tokens, attention_mask=mask)
            prompt = tokens[:1, :N_PROMPT]
            expected["greedy"] = decode.generate_tokens(model, prompt, N_NEW, temperature=0.0)
        else:
            expected["segments"] = torch.randint(0, config.n_segment, tokens.shape, generator=generator)
            hidden = model.hidden_states(tokens, segments=expected["segments"], attention_mask=mask)
            expected["hidden"] = hidden
            if Capability.pooler in found:
                expected["pooled"] = model.pooled(hidden)
            if Capability.nsp_head in found:
                expected["nsp"] = model.next_sentence(model.pooled(hidden))
            if Capability.mlm_head in found:
                expected["logits"] = model.head.logits(model.mlm_transform(hidden))
    save_file({name: value.contiguous() for name, value in expected.items()}, path / "expected.safetensors")


# What a receiver does, in a process that cannot import gptlab.
RECEIVER = """
import importlib.util, json, sys, warnings
from pathlib import Path
sys.path = [entry for entry in sys.path if "gptlab" not in Path(entry).name]
sys.meta_path = [finder for finder in sys.meta_path if "gptlab" not in getattr(finder, "__module__", "")]
assert importlib.util.find_spec("gptlab") is None
warnings.simplefilter("error")
import torch, transformers
from safetensors.torch import load_file

def open_as(kind, path):
    model, info = getattr(transformers, kind).from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()

def far(ours, theirs, mask=None):
    difference = (ours - theirs).abs()
    return float(difference.max() if mask is None else difference[mask.bool()].max())

def causal(path, e):
    model, found = open_as("AutoModelForCausalLM", path), {}
    tokens, mask, greedy = e["tokens"], e["mask"], e["greedy"]
    prompt = greedy[:, :-N_NEW]
    found["logits"] = far(e["logits"], model(tokens, attention_mask=mask).logits, mask)
    found["unmasked"] = far(e["logits"][:1], model(tokens[:1]).logits)
    how = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
    found["greedy"] = model.generate(prompt, **how).equal(greedy)
    found["uncached"] = model.generate(prompt, use_cache=False, **how).equal(greedy)
    found["static"] = model.generate(prompt, cache_implementation="static", **how).equal(greedy)
    beams = [model.generate(prompt, num_beams=3, use_cache=cached, **how) for cached in (True, False)]
    found["beams"] = beams[0].equal(beams[1])
    n_pad = 4
    padded = torch.cat([torch.zeros(1, n_pad, dtype=torch.long), prompt], 1)
    longer = torch.cat([tokens[1:, :n_pad], prompt], 1)
    left = torch.ones(2, padded.shape[1], dtype=torch.long)
    left[0, :n_pad] = 0
    both = model.generate(torch.cat([padded, longer]), attention_mask=left, **how)
    found["left padding"] = both[0, n_pad:].equal(greedy[0])
    try:
        transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, attn_implementation="eager")
        found["eager is refused"] = not (path / "modeling_gptlab.py").is_file()
    except ValueError as error:
        found["eager is refused"] = "attn_implementation=eager is not supported" in str(error)
    found["beside it"] = both[1:].equal(model.generate(longer, **how))
    return model, found

def encoder(path, e):
    inputs = {"input_ids": e["tokens"], "attention_mask": e["mask"], "token_type_ids": e["segments"]}
    model = open_as("AutoModel", path)
    out = model(**inputs)
    found = {"hidden": far(e["hidden"], out.last_hidden_state, e["mask"])}
    if "pooled" in e:
        found["pooled"] = far(e["pooled"], out.pooler_output)
    if "logits" in e:
        model = open_as("AutoModelForMaskedLM", path)
        found["logits"] = far(e["logits"], model(**inputs).logits, e["mask"])
    if "nsp" in e:
        model = open_as("AutoModelForPreTraining", path)
        found["nsp"] = far(e["nsp"], model(**inputs).seq_relationship_logits)
    return model, found

def main():
    results = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        e = load_file(path / "expected.safetensors")
        if "greedy" in e:
            model, found = causal(path, e)
        elif "classes" in e:
            model = open_as("AutoModelForSequenceClassification", path)
            found = {"classes": far(e["classes"], model(e["tokens"], attention_mask=e["mask"]).logits)}
            found["names"] = list(model.config.id2label.values()) == NAMES
            shifted = [x.roll(7, 1)[1:] for x in (e["tokens"], e["mask"])]
            if model.config.type == "decoder":
                found["left padding"] = far(e["classes"][1:], model(shifted[0], attention_mask=shifted[1]).logits)
        elif "segments" in e:
            model, found = encoder(path, e)
        else:
            model = open_as("AutoModelForSeq2SeqLM", path)
            inputs = {"input_ids": e["tokens"].flip(1), "attention_mask": e["mask"], "decoder_input_ids": e["tokens"]}
            found = {"logits": far(e["logits"], model(**inputs).logits)}
        again = path / "again"
        model.save_pretrained(again)
        before, after = model.state_dict(), type(model).from_pretrained(again).state_dict()
        found["saved again"] = all(value.equal(after[name]) for name, value in before.items())
        found["own code"] = (path / "modeling_gptlab.py").is_file()
        assert found["own code"] == (again / "modeling_gptlab.py").is_file(), list(again.iterdir())
        if found["own code"] and "greedy" in e:
            reopened = open_as("AutoModelForCausalLM", again)
            found["reopened"] = reopened(e["tokens"]).logits.equal(model(e["tokens"]).logits)
        results[path.name] = found
    print(json.dumps(results))

with torch.no_grad():
    main()
"""


def receive(folders, cache):
    """The receiver's findings about each folder."""
    program = f"N_NEW, NAMES = {N_NEW}, {CLASSES}\n{RECEIVER}"
    environment = os.environ | {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", program, str(folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(found):
    for what, value in found.items():
        if what != "own code":
            assert value is True if isinstance(value, bool) else value < 1e-4, f"{what}: {value}"


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    base = tmp_path_factory.mktemp("exports")
    (base / "folders").mkdir()
    for name, config in (presets() | ODD).items():
        written(base / "folders" / name, config)
    for name, config in CLASSIFIERS.items():
        written(base / "folders" / name, config, class_names=CLASSES)
    return base / "folders", receive(base / "folders", base / "cache")


def test_every_preset_is_the_same_without_gptlab(received):
    _, found = received
    for name, config in presets().items():
        check(found[name])
        stock = architecture_for(config).model_type != "gptlab"
        assert found[name]["own code"] is not stock
    names = {name for together in presets() for name in together.split("__")}
    assert names == set(NAMES)
    own = {name for together in presets() if found[together]["own code"] for name in together.split("__")}
    assert {"small", "modern", "moe_small", "gpt3_125m", "gpt4_rumoured"} <= own
    assert not own & {"gpt1", "gpt124m", "llama_150m", "bert_base", "t5_small", "t5_v1_1_small"}


@pytest.mark.parametrize("name", [*ODD, *CLASSIFIERS])
def test_every_option_is_the_same_without_gptlab(name, received):
    _, found = received
    check(found[name])
    assert found[name]["own code"]


@pytest.mark.parametrize("name", ODD)
def test_what_was_exported_can_be_read_again(name, received):
    """Also after the receiver has saved it again, where its class has all of the parts."""
    folders, _ = received
    for path in (folders / name, folders / name / "again"):
        folder = TransformersFolder(path)
        assert architecture_for(folder.config).model_type == "gptlab"
        model = build_model(folder.config, folder.vocab_size, seed=0)
        tensors = dict(folder.tensors())
        assert tensors.keys() == model.state_dict().keys()
        if path.name != "again":
            first = tensors
        assert all(torch.equal(value, first[key]) for key, value in tensors.items())


def test_a_class_head_is_read_again(received):
    folders, _ = received
    for name in CLASSIFIERS:
        folder = TransformersFolder(folders / name)
        assert folder.n_class == 3 and folder.read("class_head.weight").shape == (3, 32)


def test_what_was_saved_without_its_head_says_how_to_save_it(tmp_path):
    path = tmp_path / "headless"
    written(path, ODD["relu2_QK_norm_capped"])
    tensors = load_file(path / "model.safetensors")
    # As AutoModel saves it.
    base = {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}
    save_file(base, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["GptlabDecoder"]}))
    with pytest.raises(
        UserError, match=r"lm_head\.weight; it was saved as GptlabDecoder: save it as GptlabForCausalLM"
    ):
        TransformersFolder(path)


@pytest.mark.slow  # a minute, and 2 GB on the disk
@pytest.mark.parametrize("name", ["small", "modern", "moe_small"])
def test_a_preset_at_its_own_size(name, tmp_path):
    config = compose(f"model={name}", "tokenizer=gpt2").model
    (tmp_path / "folders").mkdir()
    model = build_model(config, 50257, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path / "folders" / name
    path.mkdir()
    write_folder(path, config, model.state_dict().__getitem__, None, card="")
    tokens = torch.randint(0, 50257, (2, 100), generator=generator)
    with torch.no_grad():
        logits = model(tokens)
    greedy = decode.generate_tokens(model, tokens[:1, :N_PROMPT], N_NEW, temperature=0.0)
    expected = {"tokens": tokens, "mask": torch.ones_like(tokens), "logits": logits, "greedy": greedy}
    save_file(expected, path / "expected.safetensors")
    check(receive(tmp_path / "folders", tmp_path / "cache")[name])
