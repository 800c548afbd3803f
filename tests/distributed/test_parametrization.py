"""The rates of each parameter reach it under every strategy."""

import pytest
from ranks import carry_out, wanted
from small_runs import step_rows

from gptlab.config import to_plain
from gptlab.models.config import Parametrization
from gptlab.models.decoder.config import DecoderConfig

MODEL = DecoderConfig(
    n_layer=2,
    n_head=2,
    d_model=32,
    context_length=16,
    parametrization=Parametrization.completep,
    base_d_model=8,
    base_n_layer=1,
    base_d_head=4,
)
MUON = {"optimizer": "muon"}  # which has AdamW for all that is no matrix
JOBS = {
    "ddp": {"strategy": {"type": "ddp"}},
    "zero1": {"strategy": {"type": "zero1"}},
    "fsdp": {"strategy": {"type": "fsdp"}},
    "tp": {"strategy": {"type": "tp"}},
    "fsdp muon": {"strategy": {"type": "fsdp"}, **MUON},
}
REPEATED = ("ddp", "fsdp")  # by one process, whose optimizer each rank has, and by fsdp with Muon


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    place = tmp_path_factory.mktemp("parametrization")
    looked_at = {"auto": {}, "auto muon": MUON} | {name: JOBS[name] for (name,) in wanted(request, "name")}
    for n_ranks in (1, 2):
        jobs = {name: job for name, job in looked_at.items() if ("strategy" in job) == (n_ranks == 2)}
        model, micro = to_plain(MODEL), {"tp": 4}  # two a step as well, of all sequences
        runs = {name: {"model": model, "micro_batch_size": micro.get(name, 2)} for name in jobs}
        todo = [{**job, "run": runs[name], "folder": str(place / name)} for name, job in jobs.items()]
        carry_out(todo, n_ranks, place)
    return place


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in REPEATED)) for name in JOBS])
def test_a_strategy_learns_what_one_process_learns(trained, name):
    expected, found = (
        step_rows(trained / which / "metrics.csv") for which in ("auto muon" if "muon" in name else "auto", name)
    )
    assert len(found) == len(expected) > 5
    for one, other in zip(expected, found, strict=True):
        assert float(other["train/loss"]) == pytest.approx(float(one["train/loss"]), abs=2e-5)
        assert other["train/lr"] == one["train/lr"]


def test_the_learning_rate_that_is_logged_is_that_of_the_base_model(trained):
    assert max(float(row["train/lr"]) for row in step_rows(trained / "auto" / "metrics.csv")) == pytest.approx(1e-2)
