"""Each objective learns under ddp and fsdp what it learns on one process, and a continued run changes no bit."""

import pytest
from ranks import carry_out, roll_back_to
from small_runs import OBJECTIVES, learned, step_rows

RANKS = {"auto": 1, "ddp": 2, "fsdp": 2}
MICRO = {"run": {"micro_batch_size": 1}}  # each device accumulates


def job_of(objective, strategy, folder):
    return {**MICRO, "objective": objective, "strategy": {"type": strategy}, "folder": str(folder)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Ten steps of each objective under each strategy, saved after the fifth; and the same taken back and continued."""
    place = tmp_path_factory.mktemp("objectives")
    others = [name for name in OBJECTIVES if name != "causal_lm"]  # which test_strategies.py has
    for n_ranks in (1, 2):
        strategies = [strategy for strategy in RANKS if RANKS[strategy] == n_ranks]
        jobs = [job_of(o, s, place / f"{o}-{s}") for o in others for s in strategies]
        carry_out(jobs, n_ranks, place)
        for objective in others:
            for strategy in strategies:
                roll_back_to(place / f"{objective}-{strategy}", place / f"{objective}-{strategy}-again", 5)
        carry_out([job | {"folder": f"{job['folder']}-again"} for job in jobs], n_ranks, place)
    return place


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "causal_lm"])
def test_ten_steps_equal_those_of_one_process(trained, objective, strategy):
    expected = step_rows(trained / f"{objective}-auto" / "metrics.csv")
    found = step_rows(trained / f"{objective}-{strategy}" / "metrics.csv")
    assert len(found) == len(expected) == 10 and all(row["train/grad_norm"] > 0.3 for row in expected)
    for got, want in zip(found, expected, strict=True):
        names = [name for name in want if name.startswith(("train/", "val/"))]
        assert {"train/loss", "train/grad_norm"} < set(names)
        for name in names:
            assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-5), (name, got["step"])


@pytest.mark.parametrize("strategy", RANKS)
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "causal_lm"])
def test_a_continued_run_changes_no_bit(trained, objective, strategy):
    straight, again = trained / f"{objective}-{strategy}", trained / f"{objective}-{strategy}-again"
    assert '"continued"' in (again / "events.jsonl").read_text()
    assert learned(again) == learned(straight)
