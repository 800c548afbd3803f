"""A cache changes what decoding costs, and nothing else."""

import pytest
import torch

from gptlab.generation.beam import beam_search
from gptlab.generation.decoding_state import DecodingState, window_start
from gptlab.generation.int8 import Int8Model
from gptlab.generation.layout import lay_out
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import AttentionPattern, Norm, NormPlacement, Position
from gptlab.nn import linear
from gptlab.nn.attention import Attention
from gptlab.nn.cache import KVCache

CONTEXT = 12
PROMPTS = [[3], [7, 1, 30, 4, 4, 9, 8, 2, 0], [5, 5, 6, 11]]  # of unequal length
VARIANTS = {
    "gpt2": {},
    "gpt1": {"norm_placement": NormPlacement.post},
    "llama": {"norm": Norm.rmsnorm, "feedforward": Feedforward.swiglu, "bias": False, "n_kv_head": 2},
    "softcap": {"qk_norm": True, "n_kv_head": 1, "tie_embeddings": False, "logit_softcap": 5.0},
    "gpt3": {"attention_pattern": AttentionPattern.alternating, "attention_window": 3},
    "mixtral": {"n_expert": 5, "n_shared_expert": 1, "capacity_factor": 0.5, "n_kv_head": 2},
    "mistral": {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 5, "n_kv_head": 2},
    "token_shift": {"token_shift": True},
}


def logits_of_each_step(model, prompts, n_tokens, **options):
    state = DecodingState(model, prompts, **options)
    steps = [state.logits]
    for _ in range(n_tokens):
        steps.append(state.append(steps[-1].argmax(-1).tolist()))
    return torch.stack(steps), state.sequences


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position", list(Position), ids=lambda position: position.value)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2]], ids=["batch", "one"])
def test_cache_and_no_cache_agree_also_past_the_context(small, position, variant, prompts):
    model = small(position=position, **VARIANTS[variant])
    cached, tokens = logits_of_each_step(model, prompts, 3 * CONTEXT, n_more=3 * CONTEXT)
    plain, same = logits_of_each_step(model, prompts, 3 * CONTEXT, cached=False)
    assert tokens == same
    assert (cached - plain).abs().max() <= 1e-4 * plain.abs().max()
    # Without a cache, spelled out: each sequence alone, its window through the whole model.
    for row, sequence in enumerate(tokens):
        for step in (0, CONTEXT, 3 * CONTEXT):
            read = sequence[: len(prompts[row]) + step]
            alone = model(torch.tensor([read[window_start(len(read), CONTEXT) :]]))[0, -1]
            assert (cached[step, row] - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_the_window_is_half_kept_when_it_is_full():
    windows = [n - window_start(n, CONTEXT) for n in range(1, 28)]
    assert windows == [*range(1, 13), *range(6, 13), *range(6, 13), 6]
    assert [n - window_start(n, 1) for n in range(1, 4)] == [1, 1, 1]
    assert [n - window_start(n, 2) for n in range(1, 6)] == [1, 2, 1, 2, 1]
    assert [n - window_start(n, 3) for n in range(1, 9)] == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("context_length", [1, 2, 3, 5])
def test_short_contexts_slide_too(small, context_length):
    model = small()
    options = {"context_length": context_length}
    cached, tokens = logits_of_each_step(model, PROMPTS, 20, **options)
    plain, same = logits_of_each_step(model, PROMPTS, 20, cached=False, **options)
    assert tokens == same and torch.allclose(cached, plain, atol=1e-4)


def test_the_cache_is_allocated_once_and_written_in_place(small):
    model = small(n_kv_head=2)
    state = DecodingState(model, PROMPTS, n_more=50)
    held = [(layer.keys, layer.values) for layer in state.cache.layers]
    assert all(keys.shape == values.shape == (3, 2, CONTEXT, 4) for keys, values in held)
    places = [(keys.data_ptr(), values.data_ptr()) for keys, values in held]
    for _ in range(2 * CONTEXT):
        state.append([1, 2, 3])
    assert places == [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in state.cache.layers]
    assert DecodingState(model, [[1, 2]], n_more=3).cache.n_positions == 5  # no more than will be needed


def test_several_tokens_at_once_and_back_again(small):
    model = small(position=Position.rotary)
    state, plain = DecodingState(model, [[1, 2, 3]]), DecodingState(model, [[1, 2, 3]], cached=False)
    near = dict(atol=1e-5, rtol=1e-4)
    for tokens in ([4, 5, 6], [7], list(range(8, 28))):  # the last crosses the context twice
        assert torch.allclose(state.extend(tokens), plain.extend(tokens), **near)
    for keep in (25, 8):  # within the window, and before it moved
        state.truncate(keep)
        plain.truncate(keep)
        assert state.sequences == plain.sequences
        assert torch.allclose(state.append([9]), plain.append([9]), **near)


def test_sequences_can_be_selected_repeated_and_dropped(small):
    model = small()
    cached, plain = DecodingState(model, PROMPTS), DecodingState(model, PROMPTS, cached=False)
    for rows in ([2, 0, 1], [1, 1, 0, 2, 2], [3, 0], [1]):
        for state in (cached, plain):
            state.select(rows)
        tokens = list(range(1, len(rows) + 1))
        assert torch.allclose(cached.append(tokens), plain.append(tokens), atol=1e-5, rtol=1e-4)
        assert cached.sequences == plain.sequences


def test_beam_search_agrees_past_the_context(small):
    model = small()
    found = [
        [
            (beam.tokens, round(beam.score, 4))
            for beam in beam_search(model, [3, 1], 30, num_beams=3, num_return_sequences=3, cached=cached)
        ]
        for cached in (True, False)
    ]
    assert found[0] == found[1]


def test_bfloat16_caches_its_own_type(small):
    model = small(position=Position.rotary, n_kv_head=2).bfloat16()
    state, plain = DecodingState(model, PROMPTS), DecodingState(model, PROMPTS, cached=False)
    assert state.cache.layers[0].keys.dtype is torch.bfloat16
    assert (state.append([1, 2, 3]) - plain.append([1, 2, 3])).abs().max() < 0.1 * plain.logits.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        state = DecodingState(small(), PROMPTS)
        state.append([1, 2, 3])
    assert state.cache.layers[0].keys.dtype is torch.bfloat16  # what the projections gave, not what weights are


def test_a_layer_may_look_at_states_computed_once():
    """As the cross-attention of an encoder-decoder will."""
    attention = Attention(8, n_head=2, n_kv_head=2, d_head=4, bias=True, qkv_bias=True)
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    keys, values = (part(states).view(1, 5, 2, 4).transpose(1, 2) for part in (attention.k, attention.v))

    class Encoded:
        def extend(self, k, v):
            return keys, values

    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    queries = attention.q(x).view(1, 3, 2, 4).transpose(1, 2)
    weights = torch.softmax(queries @ keys.transpose(2, 3) / 2, -1)
    expected = attention.out((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, cache=Encoded()), expected, atol=1e-6)


def test_too_many_tokens_are_refused(small):
    model = small()
    cache = KVCache(2, batch_size=1, n_positions=4)
    model.hidden_states(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4 positions"):
        model.hidden_states(torch.tensor([[1, 2]]), cache=cache)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_layout_changes_nothing(small, variant):
    model = small(**VARIANTS[variant])
    tokens = torch.tensor([[1, 2, 3, 4]])
    before, state = model(tokens), {name: value.clone() for name, value in model.state_dict().items()}
    lay_out(model)
    up = (model.blocks[0].ffn if model.config.n_expert is None else model.blocks[0].ffn.shared).up
    assert up.weight.stride() == (1, up.out_features)
    assert torch.allclose(model(tokens), before, atol=1e-5)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
    model.blocks[0].attn.v.weight.mul_(2.0)  # a step of an optimizer is seen
    assert not torch.allclose(model(tokens), before, atol=1e-3)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")
@pytest.mark.parametrize("variant", VARIANTS)
def test_products_in_parts_decode_the_same(small, variant, monkeypatch):
    model = small(**VARIANTS[variant])
    plain = DecodingState(model, PROMPTS)
    expected = [plain.logits, *(plain.append([1, 2, 3]) for _ in range(5))]
    threads, bmm, batches = torch.get_num_threads(), torch.bmm, []
    monkeypatch.setattr(linear, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(linear, "MIN_INPUTS_PER_PART", 1)
    monkeypatch.setattr(torch, "bmm", lambda *given: batches.append(given) or bmm(*given))
    lay_out(model)
    torch.set_num_threads(2)
    try:
        state = DecodingState(model, PROMPTS)
        found = [state.logits, *(state.append([1, 2, 3]) for _ in range(5))]
    finally:
        torch.set_num_threads(threads)
    assert len(batches) > 5 * (1 + len(model.blocks))
    for logits, other in zip(found, expected, strict=True):
        assert torch.allclose(logits, other, atol=1e-4)


def test_int8_decodes_with_the_cache(small):
    model = Int8Model(small(position=Position.rotary, n_kv_head=2, tie_embeddings=False))
    state, plain = DecodingState(model, PROMPTS), DecodingState(model, PROMPTS, cached=False)
    for _ in range(15):
        cached, alone = state.append([1, 2, 3]), plain.append([1, 2, 3])
        assert (cached - alone).abs().max() < 0.1 * alone.abs().max()
