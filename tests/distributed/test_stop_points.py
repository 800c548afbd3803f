"""A signal ends a run inside a step or an evaluation, on all ranks at once, and nothing of the run is lost."""

import json
import threading

import pytest
from ranks import carry_out, wanted
from small_runs import step_rows
from torch.distributed import HashStore

from gptlab.distributed.stop_points import StopPoints
from gptlab.runs.folder import read_events

# Each gets its signal on one rank alone: before the first step is done, inside a later one, in a validation, in that
# after the last step, and in one of `callbacks.evaluate`.
MOMENTS = {
    "first step": {"step": 0, "micro_batch": 0},
    "step": {"step": 3, "micro_batch": 0},
    "evaluation": {"step": 5, "evaluation_batch": 1},
    "last evaluation": {"step": 10, "evaluation_batch": 0},
    "probe": {"step": 3, "probe_batch": 1},
}
STRATEGIES = {"auto": 1, "ddp": 2, "fsdp": 2}
RUN = {"micro_batch_size": 1}
# What is left out of fsdp's is as under ddp: all ranks take the same decision.
CASES = [
    pytest.param(strategy, moment, marks=[pytest.mark.slow] * (strategy == "fsdp" and moment != "step"))
    for strategy in STRATEGIES
    for moment in MOMENTS
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, request):
    """Each run, uninterrupted, and stopped and continued at each moment."""
    place = tmp_path_factory.mktemp("stopped")
    cases = wanted(request, "strategy", "moment")
    for n_ranks in (1, 2):
        jobs = []
        for strategy in (name for name, n in STRATEGIES.items() if n == n_ranks):
            common = {"slow": True, "strategy": {"type": strategy}, "run": RUN, "checkpoint": {"every_steps": 4}}
            jobs.append({**common, "folder": str(place / f"{strategy} whole")})
            for moment, where in MOMENTS.items():
                if (strategy, moment) not in cases:
                    continue
                job = {**common, "folder": str(place / f"{strategy} {moment}"), "evaluate": moment == "probe"}
                jobs += [{**job, "signal": {"rank": n_ranks - 1, **where}}, job]
        carry_out(jobs, n_ranks, place)
    return place


@pytest.mark.parametrize(("strategy", "moment"), CASES)
def test_a_stopped_run_ends_as_an_uninterrupted_one(place, strategy, moment):
    run, whole = place / f"{strategy} {moment}", place / f"{strategy} whole"
    step = MOMENTS[moment]["step"]
    events = {kind: [e["step"] for e in read_events(run) if e["event"] == kind] for kind in ("stopped", "validated")}
    # Ranks of ddp meet in the last micro-batch alone: rank 0 may be there when rank 1 gets the signal.
    late = strategy == "ddp" and "micro_batch" in MOMENTS[moment] and events["stopped"] == [step + 1]
    assert events["stopped"] == [step] or late
    assert [at for at in events["validated"] if at] == [5, 10]
    for rank in range(STRATEGIES[strategy]):
        stopped = events["stopped"][0]
        where = f"saved at step {stopped};" if stopped else "before the first step"
        assert where in (run / f"stopped_{rank}").read_text()
    assert without_speed(run) == without_speed(whole)
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert mine["val/loss"] == theirs["val/loss"] and mine["finished"]
    best = [(folder / "checkpoints").glob("best*") for folder in (run, whole)]
    assert len({next(iter(found)).resolve().name for found in best}) == 1


def without_speed(run):
    rows = step_rows(run / "metrics.csv")
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "eval/"))} for row in rows]


@pytest.mark.parametrize("lead", range(4))
@pytest.mark.parametrize("n_points", [8, None])
def test_ranks_that_are_not_in_step_stop_before_the_same_micro_batch(lead, n_points):
    """Whichever rank has the signal, and however far ahead the other is, and whether the end is known."""
    for signalled in (0, 1):
        store, stopped_at, ahead = HashStore(), {}, threading.Event()

        def rank(number, store=store, stopped_at=stopped_at, ahead=ahead, signalled=signalled):
            points = StopPoints(store, rank=number)
            for point in range(8):
                if number == 1 and point == 0:
                    ahead.wait()  # until rank 0 has taken its lead
                wanted = 15 if number == signalled and point >= (2 if number == 1 else 0) else 0
                if points.decide("step 0", point, n_points, wanted if number == 1 or lead == 0 else 0):
                    stopped_at[number] = point
                    break
                if number == 0 and point == lead:
                    ahead.set()
            ahead.set()

        threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert len(stopped_at) in (0, 2) and len(set(stopped_at.values())) <= 1


def test_points_that_all_have_passed_are_forgotten():
    store = HashStore()
    points = StopPoints(store)
    assert points.decide("step 0", 0, 2, 0) == points.decide("step 0", 1, 2, 0) == 0
    assert store.num_keys() == 2
    points.all_passed()
    assert store.num_keys() == 0
    assert points.decide("step 0", 0, 2, 2) == 2
    points.all_passed()
    assert [points.decide("eval/x 0", point, None, 0) for point in range(3)] == [0, 0, 0]
    points.all_passed()
    assert store.num_keys() == 0, "of a sequence whose end is not known before"
