"""Each objective learns under ddp and fsdp what it learns on one process, and a continued run changes no bit."""

from pathlib import Path

import pytest
from ranks import carry_out, roll_back_to, wanted
from small_runs import OBJECTIVES, learned, step_rows

RANKS = {"auto": 1, "ddp": 2, "fsdp": 2}
MICRO = {"run": {"micro_batch_size": 2}}  # each device accumulates
OTHERS = [name for name in OBJECTIVES if name != "causal_lm"]  # which test_strategies.py has
# Under ddp what the ranks count differs by objective, under fsdp the network does; the rest repeats one of them.
TRAINED = {("masked_lm", "ddp"), ("instruction", "ddp"), ("span_corruption", "fsdp"), ("classification", "fsdp")}
CONTINUED = {*((name, "auto") for name in OTHERS), ("masked_lm", "ddp"), ("span_corruption", "fsdp")}


def cases(strategies, short):
    """Each objective under each strategy; a slow test where it is not among `short`."""
    pairs = [(objective, strategy) for objective in OTHERS for strategy in strategies]
    return [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in short)) for pair in pairs]


def job_of(objective, strategy, folder):
    return {**MICRO, "objective": objective, "strategy": {"type": strategy}, "folder": str(folder)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """Ten steps of each case that is looked at, saved after the fifth; and the same taken back and continued."""
    place = tmp_path_factory.mktemp("objectives")
    again = wanted(request, "objective", "continued")
    looked_at = {*wanted(request, "objective", "strategy"), *again, *((name, "auto") for name in OTHERS)}
    for n_ranks in (1, 2):
        jobs = {(o, s): job_of(o, s, place / f"{o}-{s}") for o, s in sorted(looked_at) if RANKS[s] == n_ranks}
        carry_out(list(jobs.values()), n_ranks, place)
        jobs = [job for case, job in jobs.items() if case in again]
        for job in jobs:
            roll_back_to(Path(job["folder"]), Path(f"{job['folder']}-again"), 5)
        carry_out([job | {"folder": f"{job['folder']}-again"} for job in jobs], n_ranks, place)
    return place


@pytest.mark.parametrize(("objective", "strategy"), cases(["ddp", "fsdp"], TRAINED))
def test_ten_steps_equal_those_of_one_process(trained, objective, strategy):
    expected = step_rows(trained / f"{objective}-auto" / "metrics.csv")
    found = step_rows(trained / f"{objective}-{strategy}" / "metrics.csv")
    assert len(found) == len(expected) == 10 and all(row["train/grad_norm"] > 0.3 for row in expected)
    for got, want in zip(found, expected, strict=True):
        names = [name for name in want if name.startswith(("train/", "val/"))]
        assert {"train/loss", "train/grad_norm"} < set(names)
        for name in names:
            assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-5), (name, got["step"])


@pytest.mark.parametrize(("objective", "continued"), cases(RANKS, CONTINUED))
def test_a_continued_run_changes_no_bit(trained, objective, continued):
    straight, again = trained / f"{objective}-{continued}", trained / f"{objective}-{continued}-again"
    assert '"continued"' in (again / "events.jsonl").read_text()
    assert learned(again) == learned(straight)
