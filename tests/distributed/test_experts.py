"""Experts learn under each strategy what they learn in one process."""

import pytest
from ranks import carry_out, take_back

from gptlab.config import to_plain
from gptlab.models.config import DecoderConfig, Feedforward
from gptlab.training.folder import read_metrics

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16, "d_ff": 32}
MODELS = {
    "dropless": DecoderConfig(**SIZES, n_expert=3, n_shared_expert=1, balance_loss=0.1, feedforward=Feedforward.swiglu),
    "capacity": DecoderConfig(**SIZES, n_expert=4, capacity_factor=1.0, balance_loss=0.1, z_loss=0.01),
}
# The losses of a router are of a micro-batch, so that all have to have the same.
WAYS = {
    "auto": (1, {}),
    "full": (1, {"strategy": {"activation_checkpointing": "full"}}),
    "selective": (1, {"strategy": {"activation_checkpointing": "selective"}}),
    "compile": (1, {"strategy": {"compile": True}}),
    "ddp": (2, {"strategy": {"name": "ddp"}}),
    "zero1": (2, {"strategy": {"name": "zero1"}}),
    "fsdp": (2, {"strategy": {"name": "fsdp"}}),
    "fsdp full": (2, {"strategy": {"name": "fsdp", "activation_checkpointing": "full"}}),
    "auto muon": (1, {"optimizer": "muon"}),
    "zero1 muon": (2, {"optimizer": "muon", "strategy": {"name": "zero1"}}),
    "fsdp muon": (2, {"optimizer": "muon", "strategy": {"name": "fsdp"}}),
}


CASES = [("dropless", way) for way in WAYS] + [("capacity", way) for way in ("auto", "full", "ddp", "fsdp")]


def job_of(name, way, folder):
    run = {"model": to_plain(MODELS[name]), "micro_batch_size": 1}
    return {**WAYS[way][1], "folder": str(folder), "run": run}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ten steps of each case."""
    place = tmp_path_factory.mktemp("experts")
    for n_ranks in (1, 2):
        jobs = [job_of(name, way, place / f"{name}-{way}") for name, way in CASES if WAYS[way][0] == n_ranks]
        carry_out(jobs, n_ranks, place)
    return place


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, way in CASES if not way.startswith("auto")])
def test_ten_steps_equal_those_of_one_process(trained, name, way):
    rows = read_metrics(trained / f"{name}-{way}" / "metrics.csv")
    expected = read_metrics(trained / f"{name}-auto{' muon' if way.endswith('muon') else ''}" / "metrics.csv")
    assert len(rows) == len(expected) == 10
    assert (expected[0]["train/drop_rate"] > 0) == (name == "capacity")
    for got, want in zip(rows, expected, strict=True):
        columns = [column for column in want if column.startswith(("train/", "val/"))]
        assert {f"train/{term}" for term in MODELS[name].auxiliary_terms} < set(columns)
        for column in columns:
            assert got[column] == pytest.approx(want[column], rel=1e-5, abs=1e-5), (column, got["step"])


def test_a_run_goes_on_from_what_any_saved(trained):
    """Taken back to step 5: bit for bit where it was, and on one process from what two had divided."""
    jobs = []
    for source in ("auto muon", "fsdp muon"):
        target = trained / f"continued-{source}"
        take_back(trained / f"dropless-{source}", target, 5)
        jobs.append(job_of("dropless", "auto muon", target))
    carry_out(jobs, 1, trained)
    expected = read_metrics(trained / "dropless-auto muon" / "metrics.csv")
    for job, tolerance in zip(jobs, (0, 1e-5), strict=True):
        rows = read_metrics(trained / job["folder"] / "metrics.csv")
        assert len(rows) == 10
        for got, want in zip(rows[5:], expected[5:], strict=True):
            for column in want:
                if column.startswith(("train/", "val/")):
                    assert got[column] == pytest.approx(want[column], rel=tolerance, abs=tolerance), column
