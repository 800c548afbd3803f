import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig, Heads

VOCAB_SIZE = 31
TOKENS = torch.randint(VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(0))


def small(**options):
    config = EncoderConfig(
        **{"n_layer": 2, "n_head": 2, "d_model": 16, "context_length": 12, "init_std": 0.5} | options
    )
    return build_model(config, VOCAB_SIZE, seed=0).eval()


def test_every_token_attends_to_every_other():
    model = small()
    for changed in (0, 8):
        tokens = TOKENS.clone()
        tokens[:, changed] = (tokens[:, changed] + 1) % VOCAB_SIZE
        moved = (model.hidden_states(tokens) - model.hidden_states(TOKENS)).abs().amax((0, 2))
        assert (moved > 1e-4).all()


def test_padding_is_not_attended_to():
    model = small()
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    hidden = model.hidden_states(TOKENS, attention_mask=mask)
    again = model.hidden_states(TOKENS.masked_fill(~mask, 7), attention_mask=mask)
    assert torch.equal(hidden[mask], again[mask])
    alone = model.hidden_states(TOKENS[1:2, :4])
    assert (hidden[1, :4] - alone[0]).abs().max() < 1e-5


def test_segments_matter_and_default_to_the_first():
    model = small()
    assert torch.equal(model.hidden_states(TOKENS), model.hidden_states(TOKENS, segments=torch.zeros_like(TOKENS)))
    assert (
        model.hidden_states(TOKENS) - model.hidden_states(TOKENS, segments=torch.ones_like(TOKENS))
    ).abs().max() > 0.1


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"13 tokens do not fit model.context_length=12; crop the input"):
        small().hidden_states(torch.zeros((1, 13), dtype=torch.int64))


@pytest.mark.parametrize(
    "heads, has",
    [(Heads.none, ["pooled"]), (Heads.masked_lm, ["mlm"]), (Heads.pretraining, ["mlm", "pooled", "nsp"])],
)
def test_heads(heads, has):
    model = small(heads=heads)
    hidden = model.hidden_states(TOKENS)
    uses = {
        "mlm": lambda: model.head.logits(model.mlm_transform(hidden)),
        "pooled": lambda: model.pooled(hidden),
        "nsp": lambda: model.next_sentence(hidden[:, 0]),
    }
    shapes = {"mlm": (3, 9, VOCAB_SIZE), "pooled": (3, 16), "nsp": (3, 2)}
    for name, use in uses.items():
        if name in has:
            assert use().shape == shapes[name]
        else:
            with pytest.raises(ValueError, match=f"model.heads={heads.value} has no .*; set model.heads=pretraining"):
                use()
