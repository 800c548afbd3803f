"""Small models whose weights are large enough for positions and words to matter."""

import math

import pytest
import torch
from torch import Tensor

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig

WORDS, CONTEXT = 31, 12


@pytest.fixture
def small():
    def build(seed=0, vocab_size=WORDS, **options):
        given = {"n_layer": 2, "n_head": 4, "d_model": 16, "context_length": CONTEXT, "init_std": 0.5}
        model = build_model(DecoderConfig(**given | options), vocab_size, seed=seed).eval()
        if model.token_shift is not None:  # it begins at 0, which would hide an error
            torch.nn.init.uniform_(model.token_shift.factor, generator=torch.Generator().manual_seed(seed))
        return model

    return build


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def fits():
    """Are so many draws what a distribution would give?"""
    return _fits


def _fits(draws: list[int], expected: Tensor) -> bool:
    """Pearson's test; fails one time in a million where the draws do follow `expected` (V)."""
    draws = torch.tensor(draws)
    counts = torch.bincount(draws, minlength=len(expected)).double()
    expected = expected.double() * len(draws)
    if counts[expected == 0].sum():
        return False
    likely = expected >= 5
    rare = torch.tensor([counts[~likely].sum(), expected[~likely].sum()])
    counts, expected = counts[likely], expected[likely]
    if rare[1] >= 5:
        counts, expected = torch.cat((counts, rare[:1])), torch.cat((expected, rare[1:]))
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    if freedom == 0:
        return True
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2)
    assert math.isfinite(p_value)
    return bool(p_value > 1e-6)


@pytest.fixture
def gpt2_pair():
    """transformers' GPT-2 with random weights, and ours with the same."""
    transformers = pytest.importorskip("transformers")
    return lambda **options: _gpt2_pair(transformers, **options)


def _gpt2_pair(transformers, *, vocab_size=40, context=32, eos=None, std=0.4):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=context,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=std,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    ).eval()
    ours = build_model(
        DecoderConfig(n_layer=2, n_head=2, d_model=16, context_length=context), vocab_size, seed=0
    ).eval()
    state = {}
    for name, value in theirs.transformer.state_dict().items():
        name = name.replace("wte", "tok_emb").replace("wpe", "pos_emb").replace("h.", "blocks.")
        name = name.replace("ln_1", "norm1").replace("ln_2", "norm2").replace("ln_f", "final_norm")
        name = name.replace("attn.c_proj", "attn.out").replace("mlp.c_fc", "ffn.up").replace("mlp.c_proj", "ffn.down")
        if "c_attn" in name:
            for letter, part in zip("qkv", value.chunk(3, -1), strict=True):
                state[name.replace("c_attn", letter)] = part.T if part.ndim == 2 else part
        else:
            state[name] = value.T if name.endswith(("out.weight", "up.weight", "down.weight")) else value
    ours.load_state_dict(state)
    return theirs, ours
