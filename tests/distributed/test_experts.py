"""Experts learn under each strategy, and with any micro-batch size, what they learn in one process."""

import json

import pytest
from ranks import carry_out, roll_back_to, wanted
from small_runs import step_rows

from gptlab.config import to_plain
from gptlab.models.build import shape_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16, "d_ff": 32}
MODELS = {
    "dropless": DecoderConfig(
        **SIZES, n_expert=3, n_shared_expert=1, router_aux_loss_coef=0.1, feedforward=Feedforward.swiglu
    ),
    "capacity": DecoderConfig(
        **SIZES, n_expert=4, capacity_factor=1.0, router_aux_loss_coef=0.1, router_z_loss_coef=0.01
    ),
    # Half of six, in two shards, is two and one.
    "even": DecoderConfig(
        **SIZES,
        n_expert=6,
        n_shared_expert=1,
        router_aux_loss_coef=0.1,
        router_z_loss_coef=0.01,
        feedforward=Feedforward.swiglu,
    ),
}
# Routing is per sequence, so that micro-batches may differ: two sequences each, or all that a rank has.
STRATEGIES = {
    "auto": (1, {}),
    "full": (1, {"strategy": {"activation_checkpointing": "full"}}),
    "selective": (1, {"strategy": {"activation_checkpointing": "selective"}}),
    "compile": (1, {"strategy": {"compile": True}}),
    "ddp": (2, {"strategy": {"type": "ddp"}}),
    "zero1": (2, {"strategy": {"type": "zero1"}}),
    "fsdp": (2, {"strategy": {"type": "fsdp"}}),
    "fsdp full": (2, {"strategy": {"type": "fsdp", "activation_checkpointing": "full"}}),
    "tp": (2, {"strategy": {"type": "tp"}}),
    "tp full": (2, {"strategy": {"type": "tp", "activation_checkpointing": "full"}}),
    "fsdp_tp": (4, {"strategy": {"type": "fsdp_tp"}}),
    "auto muon": (1, {"optimizer": "muon"}),
    "zero1 muon": (2, {"optimizer": "muon", "strategy": {"type": "zero1"}}),
    "fsdp muon": (2, {"optimizer": "muon", "strategy": {"type": "fsdp"}}),
    "tp muon": (2, {"optimizer": "muon", "strategy": {"type": "tp"}}),
    "fsdp_tp muon": (4, {"optimizer": "muon", "strategy": {"type": "fsdp_tp"}}),
}
BY_EXPERT = [way for way in STRATEGIES if "tp" in way]  # which need an even number of experts

# What the others and test_strategies.py repeat.
LONG = {
    *(("dropless", way) for way in ("selective", "compile", "zero1", "fsdp full", "zero1 muon")),
    *(("capacity", way) for way in ("full", "ddp", "fsdp", "fsdp_tp")),
    *(("even", way) for way in ("tp full", "fsdp_tp", "fsdp_tp muon")),
}
CASES = [("dropless", way) for way in STRATEGIES if way not in BY_EXPERT]
CASES += [("capacity", way) for way in ("auto", "full", "ddp", "fsdp", "tp", "fsdp_tp")]
CASES += [("even", way) for way in ("auto", "auto muon", *BY_EXPERT)]


MICRO_BATCHES = {1: 2, 2: None, 4: 2}  # by number of ranks


def job_of(name, way, folder, **model):
    run = {"model": to_plain(MODELS[name]) | model, "micro_batch_size": MICRO_BATCHES[STRATEGIES[way][0]]}
    return {**STRATEGIES[way][1], "folder": str(folder), "run": run}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A run of ten steps of each case that is looked at."""
    place = tmp_path_factory.mktemp("experts")
    cases = {(name, way) for name, way in CASES if way.startswith("auto")} | {
        ("capacity", "tp"),
        ("capacity", "fsdp_tp"),
    }
    cases.update(wanted(request, "name", "way"))
    cases.update((name, source) for name, source, _ in wanted(request, "name", "source", "target"))
    for n_ranks in (1, 2, 4):
        chosen = [(name, way) for name, way in sorted(cases) if STRATEGIES[way][0] == n_ranks]
        jobs = [job_of(name, way, place / f"{name}-{way}") for name, way in chosen]
        carry_out(jobs, n_ranks, place)
    return place


def close(rows, expected, *, tolerance=1e-5):
    """Whether all that was measured of what was learned is the same."""
    assert len(rows) == len(expected)
    for got, want in zip(rows, expected, strict=True):
        for column in want:
            if column.startswith(("train/", "val/")):
                assert got[column] == pytest.approx(want[column], rel=tolerance, abs=tolerance), (column, got["step"])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=[pytest.mark.slow] * ((name, way) in LONG))
        for name, way in CASES
        if not way.startswith("auto")
    ],
)
def test_ten_steps_equal_those_of_one_process(trained, name, way):
    expected = step_rows(trained / f"{name}-auto{' muon' if way.endswith('muon') else ''}" / "metrics.csv")
    assert len(expected) == 10 and all(row["train/grad_norm"] > 0.3 for row in expected), "clipping is active"
    assert {f"train/{term}" for term in MODELS[name].auxiliary_terms} < set(expected[0])
    assert (expected[0]["train/dropped_token_fraction"] > 0) == (name == "capacity")
    close(step_rows(trained / f"{name}-{way}" / "metrics.csv"), expected)


@pytest.mark.parametrize(("way", "n_shards"), [("tp", 1), ("fsdp_tp", 2)])
def test_each_rank_of_a_tensor_parallel_group_holds_half_of_the_experts(trained, way, n_shards):
    parameters = dict(shape_model(MODELS["capacity"], 257).named_parameters())
    halved = {name for name, p in parameters.items() if ".experts." in name or (".attn." in name and p.ndim == 2)}
    # Biases of column-parallel layers are sharded, those of row-parallel layers are replicated.
    halved |= {name for name in parameters if name.endswith(("attn.q.bias", "attn.k.bias", "attn.v.bias"))}
    sizes = {name: p.numel() / (2 if name in halved else 1) for name, p in parameters.items()}
    experts = sum(number for name, number in sizes.items() if ".experts." in name)
    assert experts > 0.5 * sum(sizes.values()) / 2
    for rank in range(STRATEGIES[way][0]):
        held = json.loads((trained / f"capacity-{way}" / f"bytes_{rank}.json").read_text())
        assert held["weights"] == pytest.approx(4 * sum(sizes.values()) / n_shards, rel=0 if n_shards == 1 else 0.05)
        assert held["gradients"] == held["weights"] and held["optimizer"] == 2 * held["weights"]


# Bit for bit where the strategy is the same.
CROSSINGS = {
    ("dropless", "auto muon", "auto muon"): 0,
    ("dropless", "fsdp muon", "auto muon"): 1e-5,
    ("even", "tp muon", "auto muon"): 1e-5,
    ("even", "tp muon", "fsdp muon"): 1e-5,
    ("even", "auto muon", "tp muon"): 1e-5,
    ("even", "fsdp_tp muon", "tp muon"): 1e-5,
}


@pytest.fixture(scope="module")
def continued(trained, request):
    """Runs taken back to step 5 and continued under another strategy, and two that start from another's weights."""
    for n_ranks, way in ((1, "auto"), (2, "tp")):
        jobs = [job_of("even", way, trained / f"started-{way}", init_from=str(trained / "even-auto"))]
        for name, source, target in wanted(request, "name", "source", "target"):
            if STRATEGIES[target][0] == n_ranks:
                folder = trained / f"{name}-{source}-to-{target}"
                roll_back_to(trained / f"{name}-{source}", folder, 5)
                jobs.append(job_of(name, target, folder))
        carry_out(jobs, n_ranks, trained)
    return trained


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [pytest.param(*crossing, marks=[pytest.mark.slow] * (crossing[:2] in LONG)) for crossing in CROSSINGS],
)
def test_saved_under_one_strategy_and_continued_under_another(continued, name, source, target):
    run = continued / f"{name}-{source}-to-{target}"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "continued"] == [5]
    expected = step_rows(continued / f"{name}-auto muon" / "metrics.csv")
    close(step_rows(run / "metrics.csv")[5:], expected[5:], tolerance=CROSSINGS[name, source, target])


def test_sharded_experts_start_from_the_weights_of_unsharded_ones(continued):
    rows = step_rows(continued / "started-tp" / "metrics.csv")
    close(rows, step_rows(continued / "started-auto" / "metrics.csv"))
    assert rows[0]["train/loss"] < 0.9 * step_rows(continued / "even-auto" / "metrics.csv")[0]["train/loss"]
