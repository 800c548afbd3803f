import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.config import Feedforward
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

VOCAB_SIZE = 31
DRAW = torch.Generator().manual_seed(0)
SOURCE, TOKENS = torch.randint(VOCAB_SIZE, (3, 9), generator=DRAW), torch.randint(VOCAB_SIZE, (3, 7), generator=DRAW)
MASK = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
SIZES = {
    "n_layer": 2,
    "n_head": 3,
    "d_head": 5,
    "d_model": 16,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 5,
}


def small(**options):
    return build_model(EncoderDecoderConfig(**SIZES, **options), VOCAB_SIZE, seed=0).eval()


@pytest.mark.parametrize(
    "options", [{"feedforward": value} for value in Feedforward] + [{"tie_embeddings": False}], ids=str
)
def test_a_token_is_attended_to_from_there_on_and_the_source_everywhere(options):
    model = small(**options)
    logits = model(TOKENS, source=SOURCE)
    assert logits.shape == (3, 7, VOCAB_SIZE)
    for changed in (0, 3):
        tokens = TOKENS.clone()
        tokens[:, changed] = (tokens[:, changed] + 1) % VOCAB_SIZE
        moved = (model(tokens, source=SOURCE) - logits).abs().amax((0, 2))
        assert (moved[:changed] == 0).all() and (moved[changed:] > 0).all()
    source = SOURCE.clone()
    source[:, 8] = (source[:, 8] + 1) % VOCAB_SIZE
    assert ((model(TOKENS, source=source) - logits).abs().amax((0, 2)) > 0).all()


def test_padding_is_not_attended_to():
    model = small()
    logits = model(TOKENS, source=SOURCE, source_mask=MASK)
    assert torch.equal(logits, model(TOKENS, source=SOURCE.masked_fill(~MASK, 7), source_mask=MASK))
    assert (logits[1] - model(TOKENS[1:2], source=SOURCE[1:2, :4])[0]).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("lengths", [(0, 0, 0), (3, 1, 2)])
def test_with_a_cache_the_logits_are_the_same(lengths):
    model = small()
    encoded, cache = model.encode(SOURCE, MASK), model.new_cache(3, 7)
    whole = model(TOKENS, source=encoded)
    if any(lengths):
        model.hidden_states(TOKENS[:, : max(lengths)], source=encoded, cache=cache)
        cache.lengths = list(lengths)
    for _ in range(4):
        at = torch.tensor(cache.lengths)[:, None]
        hidden = model.hidden_states(TOKENS.gather(1, at), source=encoded, cache=cache)
        expected = whole[torch.arange(3)[:, None], at]
        assert (model.head.logits(hidden) - expected).abs().max() < 1e-4 * whole.abs().max()


def test_decoder_outputs_are_scaled_where_embeddings_are_tied_unless_set():
    scales = {
        (tied, scaled): small(tie_embeddings=tied, scale_decoder_outputs=scaled).head.scale
        for tied in (True, False)
        for scaled in (None, True, False)
    }
    assert scales == {
        (True, None): 0.25,
        (True, True): 0.25,
        (True, False): 1.0,
        (False, None): 1.0,
        (False, True): 0.25,
        (False, False): 1.0,
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"relative_attention_num_buckets": 7}, "model.relative_attention_num_buckets=7 must be even and at least 4"),
        ({"relative_attention_num_buckets": 2}, "model.relative_attention_num_buckets=2 must be even and at least 4"),
        (
            {"relative_attention_max_distance": 3},
            "model.relative_attention_max_distance=3 must be above half of model.relative_attention_num_buckets=6",
        ),
        ({"n_decoder_layer": 0}, "model.n_decoder_layer=0 is outside"),
        (
            {"decoder_start_token_id": 40, "vocab_size": 31},
            "model.decoder_start_token_id=40 is outside model.vocab_size=31",
        ),
        ({"init_factor": 0.0}, "model.init_factor=0.0 must be above 0"),
        ({"dropout": 1.0}, r"model.dropout=1.0 is outside \[0, 1\)"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig(**SIZES | options).check()
