"""The sizes of steps against a count step by step."""

import numpy as np
import pytest

from gptlab.steps import Steps, steps_of_config


def counted(context, batch, warmup, n):
    """Sequences of the first steps, taking a step at a time."""
    tokens, found = 0, []
    for _ in range(n):
        size = next((size for until, size in warmup if tokens < until), batch) // context
        found.append(size)
        tokens += size * context
    return found


def test_steps_are_those_of_a_count():
    rng = np.random.default_rng(0)
    for _ in range(300):
        context = int(rng.integers(1, 9))
        sizes = np.sort(rng.integers(1, 12, int(rng.integers(1, 5)))) * context
        until = np.sort(rng.choice(400, len(sizes) - 1, replace=False)) + 1
        warmup = [[int(u), int(s)] for u, s in zip(until, sizes[:-1], strict=True)]
        steps = Steps.of(context, int(sizes[-1]), warmup)
        expected = counted(context, int(sizes[-1]), warmup, 60)
        before = np.append(0, np.cumsum(expected))
        assert [steps.n_sequences(s) for s in range(60)] == expected
        assert [steps.sequences_before(s) for s in range(61)] == before.tolist()
        for tokens in rng.integers(0, int(before[-1]) * context, 20).tolist():
            whole = int(np.searchsorted(before * context, tokens, side="right")) - 1
            assert steps.within(tokens) == whole
            assert steps.reaching(tokens) == whole + (before[whole] * context < tokens)


def test_a_point_takes_effect_with_the_first_step_that_begins_after_it():
    steps = Steps.of(8, 64, [[40, 16], [41, 24], [100, 32]])
    assert [steps.tokens(s) for s in range(7)] == [16, 16, 16, 32, 32, 64, 64]
    assert [steps.tokens_before(s) for s in range(7)] == [0, 16, 32, 48, 80, 112, 176]


def test_without_a_warmup_all_steps_are_alike():
    steps = Steps.of(128, 2048)
    assert steps.phases == ((0, 0, 16),) and steps.tokens_before(10**12) == 2048 * 10**12
    assert steps.within(1_900_000) == 1_900_000 // 2048 and steps.reaching(2049) == 2


def test_lengths_by_the_tokens_before():
    steps = Steps.of(8, 16, length_warmup=[[30, 2], [64, 4]])
    assert [steps.length(s) for s in range(6)] == [2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize("given", [{}, {"batch_warmup": [], "length_warmup": []}, {"batch_warmup": [[10, 8]]}])
def test_the_steps_of_a_config_as_a_checkpoint_holds_it(given):
    config = {"batch_tokens": 16, "data": {"context_length": None}, "model": {"context_length": 4}, **given}
    assert steps_of_config(config) == Steps.of(4, 16, given.get("batch_warmup", ()))
