import json
import os
import pickle
import shutil
import sys
from dataclasses import dataclass

import pytest
import torch
import transformers
from interop.external import CASES, EXPERTS, VOCAB_SIZE, Case, gpt2, llama, memory_taken
from safetensors.torch import load_file, save_file

from gptlab.config import to_plain
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.errors import UserError
from gptlab.interop.architecture import differences, shapes
from gptlab.interop.transformers_folder import TransformersFolder, architecture_for, write_folder
from gptlab.models.build import build_model
from gptlab.models.config import Feedforward, model_from_plain
from gptlab.models.decoder.config import (
    AttentionPattern,
    DecoderConfig,
    Norm,
    NormPlacement,
    Position,
    RopeType,
    RouterSoftmax,
)


def exported(folder: TransformersFolder, path):
    path.mkdir()
    write_folder(path, folder.config, folder.read, None, card="a model\n")
    return path


def opened(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, **EXPERTS).eval()


@pytest.mark.parametrize("name", CASES)
def test_in_out_and_in_again_is_bit_identical(name, tmp_path):
    case = CASES[name]
    first = TransformersFolder(case.save(tmp_path / "theirs"))
    second = TransformersFolder(exported(first, tmp_path / "ours"))
    assert second.architecture is first.architecture or name == "mistral"  # which is a llama without its window
    assert differences(second.config, first.config) == [] and second.vocab_size == first.vocab_size
    for option in ("context_length", "dropout_attention", "dropout_embedding", "dropout_residual", "init_std"):
        assert getattr(second.config, option) == getattr(first.config, option)
    ours = dict(first.tensors())
    assert ours.keys() == build_model(first.config, VOCAB_SIZE, seed=0).state_dict().keys()
    for own, value in second.tensors():
        assert torch.equal(value, ours[own]), own
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert theirs.keys() == written.keys() and all(torch.equal(theirs[key], written[key]) for key in theirs)


@pytest.mark.parametrize("name", CASES)
def test_the_auto_classes_open_what_is_written(name, tmp_path):
    case = CASES[name]
    first = TransformersFolder(case.save(tmp_path / "theirs"))
    reference, model = case.model(), opened(exported(first, tmp_path / "ours"))
    tokens = torch.randint(VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(3))
    assert torch.equal(model(tokens).logits, reference(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is(dtype, tmp_path):
    theirs = CASES["llama tied, grouped"].model().to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    first = TransformersFolder(tmp_path / "theirs")
    second = TransformersFolder(exported(first, tmp_path / "ours"))
    for (name, a), (_, b) in zip(first.tensors(), second.tensors(), strict=True):
        assert a.dtype == b.dtype == dtype and torch.equal(a, b), name
    assert opened(tmp_path / "ours").dtype == dtype


def test_shards_are_read(tmp_path):
    case = CASES["llama"]
    whole = dict(TransformersFolder(case.save(tmp_path / "whole")).tensors())
    parts = case.save(tmp_path / "parts", max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    folder = TransformersFolder(parts)
    assert all(torch.equal(folder.read(name), value) for name, value in whole.items())
    next(parts.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-\d+\.safetensors, which .*index\.json names"):
        TransformersFolder(parts)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_read_as_weights_only(zipped, tmp_path):
    case = CASES["gpt2"]
    whole = dict(TransformersFolder(case.save(tmp_path / "m")).tensors())
    state = load_file(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    state["lm_head.weight"] = state["transformer.wte.weight"]  # old files hold a tied head twice
    torch.save(state, tmp_path / "m" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    folder = TransformersFolder(tmp_path / "m")
    assert all(torch.equal(folder.read(name), value) for name, value in whole.items())


def test_a_model_that_was_saved_without_its_head(tmp_path):
    case = CASES["gpt2"]
    whole = dict(TransformersFolder(case.save(tmp_path / "m")).tensors())
    state = load_file(tmp_path / "m" / "model.safetensors")
    state = {name.removeprefix("transformer."): value for name, value in state.items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)  # the mask, which GPT-2's first files hold
    save_file(state, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    folder = TransformersFolder(tmp_path / "m")
    assert all(torch.equal(folder.read(name), value) for name, value in whole.items())


def test_rotary_base_in_the_words_of_older_versions(tmp_path):
    path = CASES["llama"].save(tmp_path / "m")
    content = json.loads((path / "config.json").read_text())
    del content["rope_parameters"]
    (path / "config.json").write_text(json.dumps(content | {"rope_theta": 70.0, "rope_scaling": None}))
    assert TransformersFolder(path).config.rope_theta == 70.0


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def damage_nothing(path, state):
    (path / "config.json").unlink()


def damage_kind(path, state):
    (path / "config.json").write_text('{"model_type": "bloom"}')


def damage_json(path, state):
    (path / "config.json").write_text("{")


def damage_weights(path, state):
    (path / "model.safetensors").unlink()


def damage_bytes(path, state):
    (path / "model.safetensors").write_bytes(b"\xff" * 40)


def damage_missing(path, state):
    del state["transformer.h.0.ln_1.bias"]


def damage_many(path, state):
    for name in [name for name in state if name.startswith("transformer.h.0")]:
        del state[name]


def damage_extra(path, state):
    state["transformer.h.9.ln_1.bias"] = torch.zeros(3)


def damage_shape(path, state):
    state["transformer.h.1.attn.c_attn.weight"] = torch.zeros(21, 21)


def damage_head(path, state):
    state["lm_head.weight"] = torch.zeros(VOCAB_SIZE, 21)


def damage_pickle(path, state):
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"transformer.wte.weight": Evil()}))


def damage_missing_key(path, state):
    content = json.loads((path / "config.json").read_text())
    del content["n_embd"]
    (path / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            damage_nothing,
            r"is not a transformers model: it has no config\.json; name the folder that save_pretrained wrote",
        ),
        (
            damage_kind,
            r"config\.json: model_type=bloom is not supported; supported: openai-gpt, gpt2, .*, bert, t5, gptlab$",
        ),
        (damage_json, r"config\.json cannot be read"),
        (damage_missing_key, r"config\.json: n_embd is missing, which a gpt2 model needs"),
        (damage_weights, r"has a config\.json and no weights; it needs one of model\.safetensors, "),
        (damage_bytes, r"model\.safetensors is damaged or not safetensors"),
        (damage_missing, r"m lacks 1 tensor of a gpt2 model: transformer\.h\.0\.ln_1\.bias$"),
        (damage_many, r"m lacks 12 tensors of a gpt2 model: transformer\.h\.0\.attn\.c_attn\.bias, .* and 7 more$"),
        (damage_extra, r"m has 1 tensor that a gpt2 model does not: transformer\.h\.9\.ln_1\.bias$"),
        (
            damage_shape,
            r"h\.1\.attn\.c_attn\.weight has the shape \(21, 21\), and config\.json implies \(21, 63\)$",
        ),
        (damage_head, r"lm_head\.weight differs from transformer\.wte\.weight, and config\.json has tie_word_embed"),
        (damage_pickle, r"pytorch_model\.bin is refused: it holds more than tensors"),
    ],
)
def test_folders_without_a_model_are_refused(damage, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = CASES["gpt2"].save(tmp_path / "m")
    before = load_file(path / "model.safetensors")
    state = dict(before)
    damage(path, state)
    if state.keys() != before.keys() or any(state[name] is not before[name] for name in state):
        save_file(state, path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        TransformersFolder(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "case, message",
    [
        (Case("GPT2Config", gpt2(activation_function="gelu")), "activation_function=gelu .* only .*=gelu_new or"),
        (Case("GPT2Config", gpt2(scale_attn_by_inverse_layer_idx=True)), "scale_attn_by_inverse_layer_idx=true"),
        (Case("OpenAIGPTConfig", gpt2(afn="relu")), "afn=relu"),
        (Case("LlamaConfig", llama(hidden_act="gelu")), "hidden_act=gelu"),
        (Case("LlamaConfig", llama(attention_bias=True)), "attention_bias=true with mlp_bias=false .* model.bias"),
        (
            Case("LlamaConfig", llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0})),
            "rope_parameters of type dynamic .* only linear, yarn, llama3 and default are",
        ),
        (
            Case("Qwen2Config", llama(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
            "use_sliding_window",
        ),
    ],
    ids=str,
)
def test_unsupported_options_are_named(case, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TransformersFolder(case.save(tmp_path / "m"))


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("gpt2", "vocab_size", "61", "vocab_size=61 must be a whole number"),
        ("gpt2", "vocab_size", None, "vocab_size=null must be a whole number"),
        ("gpt2", "vocab_size", 0, "vocab_size=0 is below 1"),
        ("gpt2", "n_embd", 21.0, r"n_embd=21\.0 must be a whole number"),
        ("gpt2", "n_embd", "21", "n_embd=21 must be a whole number"),
        ("gpt2", "n_inner", "a", "n_inner=a must be a whole number or null"),
        ("gpt2", "n_layer", True, "n_layer=true must be a whole number"),
        ("gpt2", "tie_word_embeddings", 1, "tie_word_embeddings=1 must be true or false"),
        ("gpt2", "layer_norm_epsilon", [1], r"layer_norm_epsilon=\[1\] must be a number"),
        ("gpt2", "model_type", ["gpt2"], r"model_type=\[.*gpt2.*\] is not supported; supported: openai-gpt"),
        ("llama", "rope_parameters", "x", "rope_parameters=x must be an object or null"),
        ("llama", "rope_parameters", {"rope_theta": None}, "rope_theta=null must be a number"),
        ("mistral", "sliding_window", "a", "sliding_window=a must be a whole number or null"),
        ("qwen2", "layer_types", "full_attention", "layer_types=full_attention must be a list or null"),
        ("qwen2", "layer_types", [1, "full_attention"], "layer_types with 1 are not supported"),
    ],
)
def test_values_of_the_wrong_kind_are_named(name, key, value, message, tmp_path):
    path = CASES[name].save(tmp_path / "m")
    content = json.loads((path / "config.json").read_text()) | {key: value}
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json: " + message):
        TransformersFolder(path)


def test_null_is_false(tmp_path):
    path = CASES["llama"].save(tmp_path / "m")
    content = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": None, "attention_bias": None}
    (path / "config.json").write_text(json.dumps(content))
    config = TransformersFolder(path).config
    assert config.tie_embeddings is False and config.bias is False


@pytest.mark.parametrize("index", [[], None, {"a": 1}, "x"], ids=str)
def test_a_wrong_index_is_named(index, tmp_path):
    path = CASES["gpt2"].save(tmp_path / "m")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map.* must be "):
        TransformersFolder(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04", b"\x80\x02"])
def test_a_damaged_pickle_is_not_called_code(content, tmp_path):
    path = CASES["gpt2"].save(tmp_path / "m")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or .*; download it again"):
        TransformersFolder(path)


@pytest.mark.parametrize("pickled", [False, True])
def test_integers_are_not_weights(pickled, tmp_path):
    path = CASES["gpt2"].save(tmp_path / "m")
    state = load_file(path / "model.safetensors")
    state["transformer.h.0.ln_1.weight"] = state["transformer.h.0.ln_1.weight"].to(torch.int8)
    if pickled:
        (path / "model.safetensors").unlink()
        torch.save(state, path / "pytorch_model.bin")
    else:
        save_file(state, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds 1 tensor as integers: transformer\.h\.0\.ln_1\.weight;"):
        TransformersFolder(path)


def test_rope_scaling_of_older_versions_is_read(tmp_path):
    path = CASES["llama 3.1"].save(tmp_path / "m")
    content = json.loads((path / "config.json").read_text())
    config = TransformersFolder(path).config
    scaling = content.pop("rope_parameters")
    theta = scaling.pop("rope_theta")
    older = {"rope_theta": theta, "rope_scaling": {**scaling, "type": scaling.pop("rope_type")}}
    (path / "config.json").write_text(json.dumps(content | older))
    assert TransformersFolder(path).config == config
    assert (config.rope_type, config.rope_factor, config.rope_original_context) == (RopeType.llama3, 8.0, 9)
    older["rope_scaling"]["mscale"] = 1.0
    (path / "config.json").write_text(json.dumps(content | older))
    with pytest.raises(ValueError, match=r"rope_scaling of type llama3 with mscale=1\.0 is not supported"):
        TransformersFolder(path)


LLAMA = {
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "feedforward": Feedforward.swiglu,
    "bias": False,
    "n_layer": 1,
    "n_head": 2,
    "d_model": 8,
}


@pytest.mark.parametrize(
    "options, kind",
    [
        ({}, "gpt2"),
        ({"norm_placement": NormPlacement.post}, "openai-gpt"),
        (LLAMA, "llama"),
        (LLAMA | {"n_kv_head": 1, "tie_embeddings": False}, "llama"),
        (LLAMA | {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 4}, "mistral"),
        (LLAMA | {"qkv_bias": True}, "qwen2"),
        (LLAMA | {"n_expert": 4}, "mixtral"),
        (LLAMA | {"attention_scale": 0.5}, "llama"),  # given, and equal to the default: two heads of 4
    ],
    ids=str,
)
def test_the_architecture_that_holds_a_model(options, kind):
    assert architecture_for(DecoderConfig(**options)).model_type == kind


@pytest.mark.parametrize(
    "options",
    [
        {"attention_pattern": AttentionPattern.alternating, "attention_window": 4},
        LLAMA | {"qk_norm": True},
        LLAMA | {"logit_softcap": 15.0},
        {"feedforward": Feedforward.relu2},
        {"n_kv_head": 2},
        {"d_head": 8},
        {"norm_placement": NormPlacement.post, "d_ff": 100},
        LLAMA | {"n_expert": 4, "n_shared_expert": 1},
        LLAMA | {"n_expert": 4, "router_softmax": RouterSoftmax.before},
        {"n_expert": 4},
        {"attention_scale": 1.0},
        LLAMA | {"attention_scale": 0.25},
    ],
    ids=str,
)
def test_what_transformers_does_not_know_goes_with_code_of_its_own(options):
    assert architecture_for(DecoderConfig(**options)).model_type == "gptlab"


def test_a_plugins_model_is_refused_by_name():
    @dataclass(kw_only=True, slots=True)
    class Wider(DecoderConfig):
        type: str = "wider"

    with pytest.raises(UserError, match=r"model\.type=wider comes from a plugin: .* use it with gptlab alone"):
        architecture_for(Wider())


def test_suppressed_tokens_survive_in_and_out_and_in(tmp_path):
    """Those of a padded vocabulary, and those that another library suppresses."""
    config, tokenizer = DecoderConfig(n_layer=1, n_head=2, d_model=8), ByteTokenizer()
    weights = build_model(config, 260, seed=0).state_dict()
    (tmp_path / "a").mkdir()
    write_folder(tmp_path / "a", config, weights.__getitem__, tokenizer, card="")
    file = tmp_path / "a" / "generation_config.json"
    assert json.loads(file.read_text())["suppress_tokens"] == [257, 258, 259]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"suppress_tokens": [7], "begin_suppress_tokens": [8]}))
    for source, target in ("ab", "bc"):
        folder = TransformersFolder(tmp_path / source)
        (tmp_path / target).mkdir()
        write_folder(
            *(tmp_path / target, folder.config, folder.read, folder.tokenizer()),
            card="",
            special_tokens=folder.special_tokens,
        )
        written = json.loads((tmp_path / target / "generation_config.json").read_text())
        assert written["suppress_tokens"] == [7, 257, 258, 259] and written["begin_suppress_tokens"] == [8]


def test_plain_options_become_typed_again():
    config = DecoderConfig(**LLAMA, attention_pattern=AttentionPattern.sliding_window, attention_window=4)
    assert model_from_plain(to_plain(config)) == config
    with pytest.raises(ValueError, match=r"unknown config key model\.wings, of another version"):
        model_from_plain(to_plain(config) | {"wings": 2})
    with pytest.raises(ValueError, match=r"model\.type=bird is unknown; known: decoder"):
        model_from_plain({"type": "bird"})


@pytest.mark.slow  # test_openai_checkpoint.py has its like
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_near_the_weights(tmp_path):
    config = DecoderConfig(n_layer=24, n_head=6, d_model=384)
    tensors = {name: torch.ones(shape) for name, shape in shapes(config, 4000).items()}
    path = tmp_path / "theirs"
    path.mkdir()
    write_folder(path, config, tensors.__getitem__, None, card="")
    size = (path / "model.safetensors").stat().st_size
    (tmp_path / "pickled").mkdir()
    shutil.copy(path / "config.json", tmp_path / "pickled")
    torch.save(load_file(path / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    for source, target in (("theirs", "ours"), ("ours", "back"), ("pickled", "unpickled")):
        assert memory_taken(tmp_path / source, tmp_path / target) < 1.3 * size
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == load_file(path / "model.safetensors").keys()
