"""The rates of each parameter reach it under every strategy."""

import pytest
from ranks import carry_out
from small_runs import step_rows

from gptlab.config import to_plain
from gptlab.models.config import Parametrization
from gptlab.models.decoder.config import DecoderConfig

MODEL = DecoderConfig(
    n_layer=4,
    n_head=2,
    d_model=32,
    context_length=16,
    parametrization=Parametrization.completep,
    base_d_model=8,
    base_n_layer=2,
    base_d_head=4,
)
STRATEGIES = ("ddp", "zero1", "fsdp", "tp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("parametrization")
    run = {"model": to_plain(MODEL), "micro_batch_size": 2}
    muon = {"optimizer": "muon"}
    alone = [{"run": run}, {"run": run, **muon}]
    names = ["auto", "auto muon"]
    carry_out([job | {"folder": str(place / name)} for name, job in zip(names, alone, strict=True)], 1, place)
    jobs = [{"run": run, "strategy": {"type": name}, "folder": str(place / name)} for name in STRATEGIES]
    jobs.append({"run": run, "strategy": {"type": "fsdp"}, "folder": str(place / "fsdp muon"), **muon})
    carry_out(jobs, 2, place)
    return place


@pytest.mark.parametrize("name", [*STRATEGIES, "fsdp muon"])
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
