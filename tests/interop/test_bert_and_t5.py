"""BERT and T5 in and out of transformers: bits, old files, refusals, and `gptlab convert`."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from interop.external import BERTS, T5S, VOCAB_SIZE, bert, run_convert, t5
from safetensors.torch import load_file, save_file

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.generation.decode import decode
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling
from gptlab.interop.architecture import differences
from gptlab.interop.t5 import T5
from gptlab.interop.transformers_folder import ARCHITECTURES, TransformersFolder, architecture_for, write_folder
from gptlab.models.build import build_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs.initial_weights import open_initial

CASES = BERTS | T5S


def opened(path, case):
    kind = getattr(transformers, case.kind)
    model, info = kind.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_in_and_out_by_the_command(name, tmp_path):
    case = CASES[name]
    theirs = case.save(tmp_path / "theirs")
    assert run_convert(f"from={theirs}", f"to={tmp_path / 'ours'}") == 0
    assert run_convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}") == 0
    first, second = TransformersFolder(theirs), TransformersFolder(tmp_path / "back")
    assert second.architecture is first.architecture
    assert differences(second.config, first.config) == [] and second.vocab_size == first.vocab_size == VOCAB_SIZE
    for option in ("context_length", "dropout"):
        assert getattr(second.config, option) == getattr(first.config, option)
    ours, again = dict(first.tensors()), dict(second.tensors())
    assert ours.keys() == again.keys() == build_model(first.config, VOCAB_SIZE, seed=0).state_dict().keys()
    assert all(torch.equal(again[own], value) for own, value in ours.items())

    before, after = case.model(), opened(tmp_path / "back", case)
    state = after.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.state_dict().items())
    tokens = torch.arange(1, 12)[None]
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if case.config == "T5Config" else {})
    with torch.no_grad():
        assert torch.equal(before(**inputs)[0], after(**inputs)[0])
    auto = transformers.AutoModel.from_pretrained(tmp_path / "back")
    assert type(auto).__name__ == ("T5Model" if case.config == "T5Config" else "BertModel")
    card = (tmp_path / "back" / "README.md").read_text()
    assert f"pipeline_tag: {first.architecture.task_of(first.config)}" in card


def test_the_tensors_tell_the_heads_not_the_name_in_the_config(tmp_path):
    path = BERTS["bert"].save(tmp_path / "theirs")
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {"architectures": ["BertForMaskedLM"]}))
    assert TransformersFolder(path).config.heads is Heads.pretraining


def test_names_of_older_files(tmp_path):
    """As bert-base-uncased and t5-small lie on the hub."""
    path = BERTS["bert"].save(tmp_path / "bert")
    expected = dict(TransformersFolder(path).tensors())
    state = load_file(path / "model.safetensors")
    state = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in state.items()}
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    state["bert.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(state, path / "model.safetensors")
    again = dict(TransformersFolder(path).tensors())
    assert again.keys() == expected.keys() and all(torch.equal(again[name], value) for name, value in expected.items())
    state["cls.predictions.decoder.weight"][3, 3] += 1
    save_file(state, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight"):
        TransformersFolder(path)

    path = T5S["t5"].save(tmp_path / "t5")
    expected = dict(TransformersFolder(path).tensors())
    state = load_file(path / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        state[name] = state["shared.weight"].clone()
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 3)
    save_file(state, path / "model.safetensors")
    folder = TransformersFolder(path)
    assert folder.config.tie_embeddings and dict(folder.tensors()).keys() == expected.keys()


@pytest.mark.parametrize(
    "options, untied, tied, scaled",
    [
        ({}, False, True, True),
        ({"tie_word_embeddings": True}, False, True, True),
        ({"tie_word_embeddings": False}, True, False, False),  # T5 1.1 and FLAN as they were released
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False, False),  # saved since version 5
        ({"tie_word_embeddings": False}, False, True, False),
        ({"tie_word_embeddings": True}, True, False, True),
    ],
    ids=str,
)
def test_whether_a_t5_is_tied_and_scaled(options, untied, tied, scaled, tmp_path):
    path = T5S["t5 1.1" if untied else "t5 gated"].save(tmp_path / "theirs")
    content = json.loads((path / "config.json").read_text())
    del content["tie_word_embeddings"], content["scale_decoder_outputs"]
    (path / "config.json").write_text(json.dumps(content | options))
    config = TransformersFolder(path).config
    assert (config.tie_embeddings, config.scales_decoder_outputs) == (tied, scaled)
    theirs = opened(path, T5S["t5"])
    assert (theirs.lm_head.weight is theirs.shared.weight, theirs.config.scale_decoder_outputs) == (tied, scaled)


def test_the_token_that_begins():
    for options, start in (
        ({"decoder_start_token_id": 7}, 7),
        ({"decoder_start_token_id": None, "pad_token_id": 3}, 3),
        ({"decoder_start_token_id": None, "pad_token_id": None}, 0),
    ):
        assert T5.read_config(t5(**options))[0].decoder_start_token_id == start
    assert T5.write_config(EncoderDecoderConfig(decoder_start_token_id=5), 9)["decoder_start_token_id"] == 5


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("bert", bert(hidden_act="gelu_new"), "hidden_act=gelu_new is not supported"),
        ("bert", bert(position_embedding_type="relative_key"), "position_embedding_type=relative_key"),
        ("bert", bert(is_decoder=True), "is_decoder=true"),
        ("bert", bert(add_cross_attention=True), "add_cross_attention=true"),
        ("bert", bert(tie_word_embeddings=False), "tie_word_embeddings=false"),
        ("bert", bert(architectures=["BertForQuestionAnswering"]), "is none of BertForPreTraining, BertForMaskedLM"),
        ("bert", bert(num_attention_heads=2), "model.d_model=21 is not divisible by model.n_head=2"),
        ("t5", t5(feed_forward_proj="gated-tanh"), "feed_forward_proj=gated-tanh is not supported"),
        ("t5", t5(relative_attention_num_buckets=5), "model.relative_attention_num_buckets=5 must be even"),
        ("t5", t5(d_kv="a"), "d_kv=a must be a whole number or null"),
        ("t5", t5(is_encoder_decoder=False), "is_encoder_decoder=false is not supported"),
        ("t5", t5(decoder_start_token_id="a"), "decoder_start_token_id=a must be a whole number"),
    ],
    ids=str,
)
def test_unsupported_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        ARCHITECTURES[kind].read_config(options)


@pytest.mark.parametrize(
    "config, kind",
    [
        (EncoderConfig(), "bert"),
        (EncoderConfig(d_head=8), "gptlab"),
        (EncoderConfig(feedforward=Feedforward.swiglu), "gptlab"),
        *((EncoderDecoderConfig(feedforward=kind), "t5") for kind in Feedforward),
        (EncoderDecoderConfig(n_decoder_layer=3, d_head=5, tie_embeddings=False, scale_decoder_outputs=True), "t5"),
    ],
    ids=str,
)
def test_the_architecture_that_holds_a_model(config, kind):
    assert architecture_for(config).model_type == kind


@pytest.mark.parametrize("feedforward", Feedforward)
def test_a_t5_of_each_feedforward_is_the_same_in_transformers(feedforward, tmp_path):
    config = EncoderDecoderConfig(n_layer=1, n_head=2, d_model=16, feedforward=feedforward)
    model = build_model(config, 40, seed=0).eval()
    write_folder(tmp_path, config, model.state_dict().__getitem__, None, card="")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source, tokens = torch.arange(1, 9)[None], torch.arange(7, 20)[None]
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=tokens).logits
        assert torch.allclose(model(tokens, source=source), expected, atol=1e-4)


def test_another_architecture_is_named():
    assert differences(EncoderConfig(), DecoderConfig()) == ["a model with model.type=encoder"]


def test_an_exported_t5_generates_the_same_in_transformers(tmp_path):
    config = EncoderDecoderConfig(n_layer=2, n_head=3, d_head=5, d_model=24, decoder_start_token_id=7, vocab_size=260)
    model = build_model(config, 260, seed=0).eval()
    tokenizer = ByteTokenizer()
    write_folder(tmp_path, config, model.state_dict().__getitem__, tokenizer, card="")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("It was", return_tensors="pt").input_ids
    assert ids.tolist() == [tokenizer.encode("It was").tolist()]
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
    assert expected[0] == 7
    state = DecodingState(model, ids.tolist(), n_more=20, vocab_size=tokenizer.vocab_size)
    draws = [one.token for (one,) in decode(state, 20, Sampling(temperature=0.0))]
    assert draws[: len(expected) - 1] == expected[1:]
    again = TransformersFolder(tmp_path)
    assert again.config.decoder_start_token_id == 7 and again.tokenizer().agrees_with(tokenizer)


def test_positions_of_a_t5_have_no_end(tmp_path):
    path = T5S["t5"].save(tmp_path / "t5")
    config = TransformersFolder(path).config
    open_initial(replace(config, context_length=4096, init_from=str(path)), VOCAB_SIZE)
    with pytest.raises(ValueError, match=r"add a model with model\.type=encoder_decoder"):
        open_initial(EncoderConfig(init_from=str(path)), VOCAB_SIZE)
