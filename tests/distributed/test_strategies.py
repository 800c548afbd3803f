"""Every way of spreading the work learns what one process learns, and goes on from what any other saved."""

import json

import pytest
import safetensors.torch
import torch
from ranks import carry_out, roll_back_to, wanted
from small_runs import step_rows

from gptlab.cli.convert import main as convert
from gptlab.costs import memory_bytes
from gptlab.distributed.config import Sharding, StrategyConfig
from gptlab.models.build import shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.folder import read_metrics
from gptlab.training.config import AdamWConfig

RANKS = {"auto": 1, "ddp": 2, "zero1": 2, "zero2": 2, "fsdp": 2, "tp": 2, "hsdp": 4, "fsdp_tp": 4}
REPLICAS = RANKS | {"tp": 1, "fsdp_tp": 2}  # groups of ranks with sequences of their own: eight a step in all
OPTIONS = {
    "plain": {},
    "muon": {"optimizer": "muon"},
    "full": {"strategy": {"activation_checkpointing": "full"}},
    "selective": {"strategy": {"activation_checkpointing": "selective"}},
    "budget": {
        "strategy": {"activation_checkpointing": "budget", "memory_budget_gib": 1.0},
        "recomputed": [0],
    },
    "compile": {"strategy": {"compile": True}},
    "documents": {"documents": True, "strategy": {"activation_checkpointing": "full"}},
    "async": {"checkpoint": {"async_save": True}},
}
OTHERS = ("muon", "documents")  # which learn something else than the others
COMPILED = ("auto", "ddp", "fsdp", "tp")  # the others use the same two ways of dividing


def job_of(strategy: str, option: str, folder) -> dict:
    run = {"micro_batch_size": 4 // REPLICAS[strategy]}  # two a step, which accumulate
    job = {"run": run, **OPTIONS[option], "folder": str(folder), "evaluate": option == "plain"}
    own = job.get("strategy", {})
    if (strategy, option) == ("auto", "documents"):  # what the others are compared with recomputes nothing
        own = {}
    return job | {"strategy": {"type": strategy, **own}}


# What the others repeat: parameters in one piece, sharded, tensor-parallel, and in groups.
SHORT = {
    *((strategy, "plain") for strategy in RANKS),
    *(("auto", option) for option in OPTIONS),
    *(("fsdp", option) for option in OPTIONS if option not in ("selective", "compile")),
    ("tp", "documents"),
    *(("fsdp_tp", "muon"), ("tp", "full"), ("zero1", "muon")),
}
CASES = [
    pytest.param(s, o, marks=[] if (s, o) in SHORT else pytest.mark.slow)
    for s in RANKS
    for o in OPTIONS
    if o != "compile" or s in COMPILED
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A run of ten steps of each case that is looked at, saved after the fifth."""
    place = tmp_path_factory.mktemp("strategies")
    cases = {
        *(("auto", option) for option in OTHERS),
        *((s, "plain") for s in RANKS),
        *wanted(request, "strategy", "option"),
    }
    for n_ranks in (1, 2, 4):
        jobs = [(s, o) for s, o in sorted(cases) if RANKS[s] == n_ranks]
        together = [case for case in jobs if case[1] != "compile"]
        # What a process has compiled before changes how it compiles: a second size of batches becomes symbolic.
        alone = [[case] for case in jobs if case[1] == "compile"]
        for some in (together, *alone):
            carry_out([job_of(s, o, place / f"{s}-{o}") for s, o in some], n_ranks, place)
    return place


def close(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for got, want in zip(rows, expected, strict=True):
        names = ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte")
        for name in (*names, "eval/other/loss", "eval/choice/accuracy"):
            if name in want:
                assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-5), (name, got["step"])


@pytest.mark.parametrize(("strategy", "option"), CASES)
def test_ten_steps_equal_those_of_one_process(trained, strategy, option):
    first, *expected = read_metrics(trained / f"{strategy}-{option}" / "metrics.csv")
    assert first["step"] == 0 and "val/loss" in first
    if option == "plain":
        assert [row["step"] for row in (first, *expected) if "eval/other/loss" in row] == [0, 3, 6, 9, 10]
        assert [row["step"] for row in (first, *expected) if "eval/choice/accuracy" in row] == [0, 5, 10]
    expected = step_rows(trained / f"auto-{option if option in OTHERS else 'plain'}" / "metrics.csv")
    assert len(expected) == 10 and all(row["train/grad_norm"] > 0.3 for row in expected), "clipping is active"
    if option != "plain":  # which alone evaluates
        expected = [{name: value for name, value in row.items() if "eval/" not in name} for row in expected]
    if option == "budget":
        summary = json.loads((trained / f"{strategy}-{option}" / "summary.json").read_text())
        assert summary["recomputed_blocks"] == 1, "all ranks recompute what the one with the least memory has to"
    close(step_rows(trained / f"{strategy}-{option}" / "metrics.csv"), expected)


@pytest.mark.parametrize("strategy", RANKS)
def test_sizes_by_layer_are_those_of_one_process(trained, strategy):
    expected = read_metrics(trained / "auto-plain" / "layers.csv")
    found = read_metrics(trained / f"{strategy}-plain" / "layers.csv")
    assert [row["step"] for row in found] == [1, 4, 8, 10]
    for got, want in zip(found, expected, strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            # Of activations the ranks look at their own first micro-batches, which are other examples.
            rel = 0.2 if name.startswith("activation") and strategy not in ("auto", "tp") else 1e-4
            assert got[name] == pytest.approx(value, rel=rel), (name, got["step"])


@pytest.mark.parametrize("strategy", [s for s in RANKS if s not in ("auto", "tp", "fsdp_tp")])
def test_each_rank_holds_its_part(trained, strategy):
    """Bytes of the tensors that live on a rank, beside (weights + gradients + 2 x weights of AdamW) over N ranks."""
    whole = json.loads((trained / "auto-plain" / "bytes_0.json").read_text())
    assert whole["gradients"] == whole["weights"] and whole["optimizer"] == 2 * whole["weights"]
    n_shards = 2  # hsdp has them in two groups
    parts = {"ddp": (1, 1, 1), "zero1": (1, 1, n_shards)}.get(strategy, (n_shards, n_shards, n_shards))
    for rank in range(RANKS[strategy]):
        held = json.loads((trained / f"{strategy}-plain" / f"bytes_{rank}.json").read_text())
        for name, n in zip(("weights", "gradients", "optimizer"), parts, strict=True):
            assert held[name] == pytest.approx(whole[name] / n, rel=0.05), name
        assert held["whole_gradients"] == 0, "each pass over a part of the windows divides its gradients"
        between = held["weights_before_backward"] / whole["weights"]
        assert between == 1 if strategy in ("ddp", "zero1", "zero2") else 0.5 < between < 1
        print(f"{strategy} rank {rank}: {held}")


@pytest.mark.parametrize("strategy", ["tp", "fsdp_tp"])
def test_matrices_are_divided_and_the_rest_is_whole(trained, strategy):
    whole = json.loads((trained / "auto-plain" / "bytes_0.json").read_text())
    model = DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16)
    matrices = 4 * sum(p.numel() for p in shape_model(model, 257).blocks.parameters() if p.ndim == 2)
    n_shards = RANKS[strategy] // 2
    expected = (whole["weights"] - matrices + matrices / 2) / n_shards
    for rank in range(RANKS[strategy]):
        held = json.loads((trained / f"{strategy}-plain" / f"bytes_{rank}.json").read_text())
        assert held["weights"] == held["gradients"] == pytest.approx(expected, rel=0.05)
        assert held["optimizer"] == 2 * held["weights"]


@pytest.mark.parametrize("strategy", RANKS)
def test_a_plan_counts_what_the_ranks_hold(trained, strategy):
    """`costs.memory_bytes` beside the bytes of the tensors that live on the processes."""
    config, n_ranks = StrategyConfig(type=Sharding(strategy)), RANKS[strategy]
    model = shape_model(DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16), 257)
    planned = memory_bytes(
        model, None, optimizer=AdamWConfig(), precision="32-true", strategy=config, layout=config.layout(n_ranks, 1)
    )
    held = [json.loads((trained / f"{strategy}-plain" / f"bytes_{rank}.json").read_text()) for rank in range(n_ranks)]
    for name in ("weights", "gradients", "optimizer"):
        assert sum(one[name] for one in held) == pytest.approx(n_ranks * planned[name], rel=0.002), name
        assert [one[name] for one in held] == pytest.approx([planned[name]] * n_ranks, rel=0.05), name


# Once around: each strategy continues another's run and is continued. And what sharded weights are to one process.
AROUND = {*zip(RANKS, [*list(RANKS)[1:], "auto"], strict=True), ("auto", "auto"), ("auto", "fsdp"), ("fsdp", "auto")}
CROSSINGS = [pytest.param(a, b, marks=[] if (a, b) in AROUND else pytest.mark.slow) for a in RANKS for b in RANKS]


@pytest.fixture(scope="module")
def continued(trained, request):
    """The runs of `trained` without options, taken back to step 5 and continued under another strategy."""
    for n_ranks in (1, 2, 4):
        jobs = []
        for source, target in wanted(request, "source", "target"):
            if RANKS[target] == n_ranks:
                folder = trained / f"{source}-to-{target}"
                roll_back_to(trained / f"{source}-plain", folder, 5)
                jobs.append(job_of(target, "plain", folder))
        carry_out(jobs, n_ranks, trained)
    return trained


@pytest.mark.parametrize(("source", "target"), CROSSINGS)
def test_saved_under_one_and_continued_under_another(continued, source, target):
    run = continued / f"{source}-to-{target}"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "continued"] == [5]
    close(step_rows(run / "metrics.csv"), step_rows(continued / "auto-plain" / "metrics.csv"))


def test_a_folder_is_joined_and_exported(trained, tmp_path):
    """What a divided run saved becomes one file with every value, and a folder for transformers."""
    run = trained / "fsdp_tp-plain"
    assert convert([f"from={run}", f"to={tmp_path / 'one'}", "format=gptlab"]) == 0
    joined = checkpoint.load(tmp_path / "one" / "checkpoints" / "last.ckpt")
    parts = checkpoint.load(run / "checkpoints" / "best")
    assert joined.state.step == parts.state.step and joined.state.config == parts.state.config
    for name, value in parts.model.items():
        assert torch.equal(joined.model[name], value), name
        for key, memory in parts.optimizer[name].items():
            assert torch.equal(joined.optimizer[name][key], memory), (name, key)
    assert convert([f"from={run}", f"to={tmp_path / 'theirs'}"]) == 0
    exported = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    assert torch.equal(exported["transformer.wte.weight"], joined.model["tok_emb.weight"])
