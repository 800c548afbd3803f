"""A model that is trained in part learns under each strategy what it learns in one process."""

from itertools import pairwise

import pytest
import torch
from ranks import carry_out, roll_back_to, wanted
from small_runs import learned, step_rows

from gptlab.config import to_plain
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.load import load_model

MODEL = DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16, attention_scale=0.5)
TUNED = {
    "lora": {"type": "lora", "rank": 3, "alpha": 300.0, "target_modules": ["attn.q", "attn.v", "ffn.down"]},
    "last": {"type": "last_layers", "n_layer": 1},
}
WAYS = {
    "auto": (1, {}),
    "compile": (1, {"strategy": {"compile": True}}),
    "auto muon": (1, {"optimizer": "muon"}),
    "ddp": (2, {"strategy": {"type": "ddp"}}),
    "zero1": (2, {"strategy": {"type": "zero1"}}),
    "fsdp full": (2, {"strategy": {"type": "fsdp", "activation_checkpointing": "full"}}),
    "fsdp muon": (2, {"optimizer": "muon", "strategy": {"type": "fsdp"}}),
    "tp": (2, {"strategy": {"type": "tp"}}),
    "hsdp": (4, {"strategy": {"type": "hsdp"}}),
}
CASES = [("lora", way) for way in WAYS if way not in ("tp", "hsdp")]
CASES += [("last", way) for way in ("auto", "ddp", "zero1", "fsdp full", "tp")]


def job_of(name, way, place, folder):
    model = to_plain(MODEL) | {"init_from": str(place / "base")}
    run = {"model": model, "micro_batch_size": 2, "finetune": TUNED[name]}
    return {**WAYS[way][1], "folder": str(folder), "run": run}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A pretrained model, and ten steps of each case that is looked at from there."""
    place = tmp_path_factory.mktemp("finetune")
    base = {"folder": str(place / "base"), "run": {"model": to_plain(MODEL)}}
    looked_at = {*(case for case in CASES if case[1].startswith("auto")), *wanted(request, "name", "way")}
    for n_ranks in (1, 2):
        cases = [(name, way) for name, way in CASES if WAYS[way][0] == n_ranks and (name, way) in looked_at]
        jobs = [job_of(name, way, place, place / f"{name}-{way}") for name, way in cases]
        carry_out([base, *jobs] if n_ranks == 1 else jobs, n_ranks, place)
    return place


SHORT = [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] == "compile")) for case in CASES]


@pytest.mark.parametrize(("name", "way"), [case for case in SHORT if not case.values[1].startswith("auto")])
def test_ten_steps_equal_those_of_one_process(trained, name, way):
    close(trained, name, way)


@pytest.mark.slow
def test_ten_steps_in_groups_that_shard(trained):
    carry_out([job_of("lora", "hsdp", trained, trained / "lora-hsdp")], 4, trained)
    close(trained, "lora", "hsdp")


def close(trained, name, way):
    rows = step_rows(trained / f"{name}-{way}" / "metrics.csv")
    expected = step_rows(trained / f"{name}-auto{' muon' if way.endswith('muon') else ''}" / "metrics.csv")
    assert len(rows) == len(expected) == 10
    for got, want in zip(rows, expected, strict=True):
        for column in ("train/loss", "train/grad_norm", "val/loss"):
            if column in want:
                assert got[column] == pytest.approx(want[column], rel=1e-5, abs=1e-5), (column, got["step"])


def test_gradients_tell_apart_what_is_trained(trained):
    cases = ("base", "lora-auto", "lora-auto muon", "last-auto")
    norms = sorted(step_rows(trained / case / "metrics.csv")[-1]["train/grad_norm"] for case in cases)
    assert all(b - a > 1e-2 for a, b in pairwise(norms)), norms


def saved(run):
    last = checkpoint.load(checkpoint.linked(run / "checkpoints", "last"))
    return dict(last.model), set(last.optimizer)


@pytest.mark.parametrize(("name", "way"), SHORT)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(trained, name, way):
    before, _ = saved(trained / "base")
    after, remembered = saved(trained / f"{name}-{way}")
    for parameter, value in after.items():
        lora = parameter.endswith((".lora_down", ".lora_up"))
        is_trained = lora if name == "lora" else parameter.startswith(("blocks.1.", "final_norm."))
        assert (parameter in remembered) == is_trained, "the optimizer knows what is trained, and nothing else"
        if not lora:
            assert torch.equal(value, before[parameter]) != is_trained, parameter
        elif parameter.endswith("up"):
            assert value.abs().max() > 0, "it began at zero"
    assert before.keys() <= after.keys() and (name == "lora") == (len(after) > len(before))


def test_a_divided_run_is_merged(trained):
    run = trained / "lora-fsdp muon"
    parts, _ = saved(run)
    merged = load_model(str(run / "checkpoints" / "last")).model.state_dict()
    assert merged.keys() == {name for name in parts if "lora" not in name}
    for name, value in merged.items():
        expected, layer = parts[name], name.removesuffix(".weight")
        if f"{layer}.lora_up" in parts:
            expected = expected + 100 * parts[f"{layer}.lora_up"] @ parts[f"{layer}.lora_down"]
            assert (expected - parts[name]).abs().max() > 0.01
        assert torch.allclose(value, expected, atol=1e-6), name


def test_a_run_goes_on_from_what_any_saved(trained):
    """Taken back to step 5: bit for bit where it was, and in one process from what two had divided."""
    jobs = []
    for source in ("auto muon", "fsdp muon"):
        target = trained / f"continued-{source}"
        roll_back_to(trained / f"lora-{source}", target, 5)
        jobs.append(job_of("lora", "auto muon", trained, target))
    carry_out(jobs, 1, trained)
    uninterrupted = trained / "lora-auto muon"
    assert learned(trained / "continued-auto muon") == learned(uninterrupted)
    for got, want in zip(
        saved(trained / "continued-auto muon")[0].items(), saved(uninterrupted)[0].items(), strict=True
    ):
        assert got[0] == want[0] and torch.equal(got[1], want[1]), got[0]
    rows, expected = (step_rows(run / "metrics.csv") for run in (trained / "continued-fsdp muon", uninterrupted))
    assert [row["train/loss"] for row in rows] == pytest.approx([row["train/loss"] for row in expected], rel=1e-5)
