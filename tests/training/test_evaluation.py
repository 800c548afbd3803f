import pytest
from small_runs import of_objective, small_run

from gptlab.models.decoder.network import Decoder
from gptlab.training import config as training_config
from gptlab.training.loop import train


@pytest.mark.parametrize("objective", ["causal_lm", "classification"])
def test_a_batch_is_scored_in_parts_on_a_cpu(objective, tmp_path, monkeypatch):
    """With the same means; a part has at least the sequences of a micro-batch."""
    largest, hidden_states = [], Decoder.hidden_states

    def watched(model, tokens, **inputs):
        if not model.training and "cache" not in inputs:
            largest[-1] = max(largest[-1], len(tokens))
        return hidden_states(model, tokens, **inputs)

    monkeypatch.setattr(Decoder, "hidden_states", watched)
    summaries = []
    for n_tokens in (10**6, 32):
        monkeypatch.setattr(training_config, "EVAL_TOKENS_CPU", n_tokens)
        largest.append(0)
        given = {} if objective == "causal_lm" else of_objective(objective, tmp_path)
        run = train(small_run(tmp_path / f"{n_tokens}", budget_steps=2, micro_batch_size=4, **given))
        summaries.append({name: value for name, value in run.summary.items() if name.startswith("val/")})
    whole, parts = summaries
    assert parts == pytest.approx(whole, rel=1e-6) and whole
    assert 4 <= largest[1] < largest[0]
