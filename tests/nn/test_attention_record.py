"""Attention weights of unmodified modules: those of transformers, and explicit ones."""

import pytest
import torch
from interop.external import BERTS, CASES, T5S, VOCAB_SIZE
from torch import nn

from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model
from gptlab.nn.attention import Attention
from gptlab.nn.attention_record import recorded_attention


def drawn(seed, *shape):
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def pair(case, path):
    folder = TransformersFolder(case.save(path))
    ours = build_model(folder.config, folder.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(folder.tensors()))
    theirs = case.model()
    theirs.set_attn_implementation("eager")
    return theirs, ours


def assert_same(records, expected, names):
    assert [one.name for one in records] == names
    for one, weights in zip(records, expected, strict=True):
        assert weights.max() > 0.3  # sharp enough to tell
        assert (one.weights - weights).abs().max() <= 1e-5, one.name


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama tied, grouped", "mistral window", "mixtral grouped, three of seven"])
def test_decoders(name, tmp_path):
    theirs, ours = pair(CASES[name], tmp_path / "theirs")
    tokens = drawn(1, 2, 11)
    with recorded_attention(ours) as records:
        ours.hidden_states(tokens)
    expected = theirs(tokens, output_attentions=True).attentions
    assert_same(records, expected, [f"blocks.{i}.attn" for i in range(len(ours.blocks))])


@torch.no_grad()
def test_bert(tmp_path):
    theirs, ours = pair(BERTS["bert"], tmp_path / "theirs")
    tokens, mask = drawn(1, 2, 11), torch.arange(11) < torch.tensor([[11], [6]])
    with recorded_attention(ours) as records:
        ours.hidden_states(tokens, attention_mask=mask)
    expected = theirs(tokens, attention_mask=mask.long(), output_attentions=True).attentions
    assert_same(records, expected, [f"blocks.{i}.attn" for i in range(3)])
    assert not records[0].visible[1, 0, 0, 6:].any() and records[0].visible[0].all()


@torch.no_grad()
def test_t5_encoder_decoder_and_cross_attention(tmp_path):
    theirs, ours = pair(T5S["t5 five heads"], tmp_path / "theirs")  # two blocks and one
    source, tokens = drawn(1, 2, 9), drawn(2, 2, 7)
    with recorded_attention(ours) as records:
        ours.hidden_states(tokens, source=source)
    found = theirs(input_ids=source, decoder_input_ids=tokens, output_attentions=True)
    expected = [*found.encoder_attentions, *found.decoder_attentions, *found.cross_attentions]
    names = ["encoder.blocks.0.attn", "encoder.blocks.1.attn", "decoder.blocks.0.attn", "decoder.blocks.0.cross"]
    assert_same(records, expected, names)
    assert [one.crosses for one in records] == [False, False, False, True] and records[0].scale == 1.0


def small(**options):
    torch.manual_seed(0)
    return Attention(12, n_head=4, n_kv_head=2, d_head=6, bias=True, qkv_bias=True, **options).eval()


def test_the_module_computes_what_it_did_and_keeps_no_hook():
    model = nn.ModuleDict({"a": small(qk_norm_eps=1e-3)})
    x = torch.randn(1, 5, 12)
    before = model["a"](x, causal=True)
    with recorded_attention(model) as records:
        within = model["a"](x, causal=True)
    assert torch.equal(before, within)
    model["a"](x)
    assert len(records) == 1 and not model["a"]._forward_hooks
    # The weights, with the values, are the output.
    values = model["a"].v(x).unflatten(-1, (2, 6)).transpose(1, 2).repeat_interleave(2, 1)
    mixed = (records[0].weights @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(model["a"].out(mixed), within, atol=1e-6)


def test_a_query_that_sees_nothing_has_no_weights():
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)  # the first query sees no key
    model = nn.ModuleDict({"a": small()})
    with recorded_attention(model) as records:
        model["a"](torch.randn(1, 4, 12), mask=mask)
    sums = records[0].weights.sum(-1)
    assert torch.equal(sums[..., 0], torch.zeros(1, 4)) and torch.allclose(sums[..., 1:], torch.ones(1, 4, 3))


def test_layers_that_attend_otherwise_are_left_out():
    class Own(Attention):
        def forward(self, x, **options):
            return self.out(self.q(x))

    model = nn.ModuleDict({"own": Own(12, n_head=4, n_kv_head=4, d_head=6, bias=True, qkv_bias=True), "usual": small()})
    with recorded_attention(model) as records:
        for module in model.values():
            module(torch.randn(1, 3, 12))
    assert [one.name for one in records] == ["usual"]
