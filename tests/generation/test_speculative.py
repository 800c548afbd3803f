import pytest
import torch
from torch import nn

from gptlab.generation.decode import decode
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling
from gptlab.generation.speculative import speculate
from gptlab.models.decoder.config import DecoderConfig, Position
from gptlab.nn.loss import LMHead

PROMPT = [3, 1, 4]
GREEDY = Sampling(temperature=0.0)


def plain(model, sampling, n_tokens, **options):
    return [draws[0].token for draws in decode(DecodingState(model, [PROMPT]), n_tokens, sampling, **options)]


@pytest.mark.parametrize("num_draft_tokens", [1, 3, 5])
@pytest.mark.parametrize("position", list(Position), ids=lambda position: position.value)
def test_greedy_is_the_targets_greedy_also_past_the_context(small, num_draft_tokens, position):
    target = small(position=position)
    drafts = {
        "another": small(seed=1, n_layer=1),
        "itself": target,
        "shorter context": small(seed=1, n_layer=1, context_length=5),
        "longer context": small(seed=1, n_layer=1, context_length=40),
    }
    for name, draft in drafts.items():
        found = [draw.token for draw in speculate(target, draft, PROMPT, 40, GREEDY, num_draft_tokens=num_draft_tokens)]
        assert found == plain(target, GREEDY, 40), name
    penalized = Sampling(temperature=0.0, repetition_penalty=1.5)
    found = [
        draw.token
        for draw in speculate(target, drafts["another"], PROMPT, 40, penalized, num_draft_tokens=num_draft_tokens)
    ]
    assert found == plain(target, penalized, 40)


class Bigram(nn.Module):
    """A bigram model: fast enough for many draws. It has no cache."""

    def __init__(self, seed):
        super().__init__()
        self.config = DecoderConfig(n_layer=0, context_length=8)
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(1.2 * torch.randn(4, 4, generator=generator))

    def new_cache(self, batch_size, n_positions):
        return None

    def hidden_states(self, tokens):
        return self.table[tokens]

    @property
    def head(self):
        return LMHead(torch.eye(4))


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 0.7, "top_k": 3},
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"repetition_penalty": 1.5})),
    ],
    ids=str,
)
def test_the_distribution_is_exactly_the_targets(fits, filters):
    """All 64 sequences of three tokens, each with the probability that the target alone gives it."""
    sampling, target, draft = Sampling(**filters), Bigram(2), Bigram(3)
    expected = torch.ones(64, dtype=torch.float64)
    for code in range(64):
        text = [code // 16, code // 4 % 4, code % 4]
        for i in range(3):
            seen = [1, 2, *text[:i]]
            expected[code] *= sampling.probabilities(target.table[seen[-1:]], [seen])[0, text[i]].double()
    generator = torch.Generator().manual_seed(11)
    draws = []
    for _ in range(4_000 if filters else 8_000):
        a, b, c = (
            d.token for d in speculate(target, draft, [1, 2], 3, sampling, num_draft_tokens=2, generator=generator)
        )
        draws.append(16 * a + 4 * b + c)
    assert fits(draws, expected)
    assert not fits(draws, expected.roll(1))


def test_counts_and_log_probabilities(small):
    target, draft = small(), small(seed=1)
    assert list(speculate(target, draft, PROMPT, 0, GREEDY)) == []
    for n in (1, 2, 7):
        assert len(list(speculate(target, draft, PROMPT, n, Sampling()))) == n
    ours = speculate(target, draft, PROMPT, 30, GREEDY, n_top=2)
    theirs = decode(DecodingState(target, [PROMPT]), 30, GREEDY, n_top=2)
    for a, (b,) in zip(ours, theirs, strict=True):
        assert a.log_p == pytest.approx(b.log_p, abs=1e-4) and [w for w, _ in a.top] == [w for w, _ in b.top]
