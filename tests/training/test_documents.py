"""Runs on documents: what they learn and measure, packed or not, and steps and sequences that grow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import roll_back_to
from small_runs import of_objective, small_run, step_rows

import gptlab
from gptlab.data.config import AttentionScope, Packing, Split
from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.prepare import prepare
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import ShardsConfig, TextConfig
from gptlab.data.tokenizers.config import TokenizerFileConfig
from gptlab.errors import UserError
from gptlab.evaluation.config import EvaluateConfig
from gptlab.evaluation.measure import evaluate
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.runs.folder import read_metrics
from gptlab.training.config import (
    CallbacksConfig,
    CheckpointConfig,
    CosineConfig,
    SpikeAction,
    SpikeConfig,
)
from gptlab.training.loop import train

END = 256
CONTEXT = 16


def texts(folder, sizes=(3, 40, 9, 12, 5, 16, 17, 30, 2, 11, 8, 25)):
    """A folder of documents of so many bytes."""
    place = folder / "texts"
    place.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        (place / f"{number:02}.txt").write_text("".join(map(chr, rng.integers(97, 117, size))))
    return TextConfig(path=str(place), split=Split.document, val_fraction=0.4)


def run_of(folder, data, **given):
    callbacks = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=2, keep_last=9), sample=None, plot=False)
    return small_run(folder, **{"data": data, "callbacks": callbacks, "budget_steps": 4, **given})


def documents_of(config, part):
    data = prepare(config.data, config.tokenizer, progress=False)
    tokens = torch.from_numpy(data.part(part).tokens.astype(np.int64))
    ends = (tokens == END).nonzero()[:, 0] + 1
    return [document for document in tokens.tensor_split(ends)]


@torch.no_grad()
def nats(model, document):
    """Of each token but the first, in parts of the context, each alone."""
    found = []
    for at in range(0, len(document) - 1, CONTEXT):
        piece = document[at : at + CONTEXT + 1]
        found.append(F.cross_entropy(model(piece[None, :-1])[0], piece[1:], reduction="none"))
    return torch.cat(found) if found else torch.zeros(0)


@pytest.mark.parametrize("packing", [Packing.best_fit, Packing.none])
def test_the_validation_loss_of_packed_documents_is_that_of_each_alone(tmp_path, packing, capsys):
    data = replace(texts(tmp_path), packing=packing, attention=AttentionScope.document, boundary_targets=False)
    config = run_of(tmp_path / "run", data)
    run = train(config)
    model, _ = run.load()
    expected = torch.cat([nats(model, document) for document in documents_of(config, "val")])
    summary = run.summary
    assert summary["val/loss"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert "val/bits_per_byte" not in summary
    documents = documents_of(config, "train")
    n_cut = sum(len(document) > CONTEXT + 1 for document in documents)
    found = summary["packing"][""]
    assert (found["n_cut"], found["n_documents"]) == (n_cut, len(documents))
    plan = " ".join(capsys.readouterr().out.split())
    assert f"{found['n_sequences']} sequences {len(documents)} documents, {n_cut} longer than a sequence" in plan
    assert ("masked scores too" in plan) == (packing is Packing.best_fit)


def test_the_stream_confined_to_documents(tmp_path):
    config = run_of(tmp_path / "run", replace(texts(tmp_path), attention=AttentionScope.document))
    run = train(config)
    model, _ = run.load()
    tokens = torch.cat(documents_of(config, "val"))
    total = 0.0
    for at in range(0, len(tokens) - 1, CONTEXT):
        piece = tokens[at : at + CONTEXT + 1]
        ends = (piece[:-1] == END).nonzero()[:, 0] + 1
        with torch.no_grad():
            logits = torch.cat([model(part[None])[0] for part in piece[:-1].tensor_split(ends) if len(part)])
        total += F.cross_entropy(logits, piece[1:], reduction="sum").item()
    assert run.summary["val/loss"] == pytest.approx(total / (len(tokens) - 1), abs=1e-5)
    assert "val/bits_per_byte" in run.summary
    (result,) = evaluate(EvaluateConfig(run=[str(tmp_path / "run")], stride=CONTEXT), {})
    assert result["numbers"]["loss"] == pytest.approx(run.summary["val/loss"], abs=1e-5)


def test_devices_share_the_packed_batches_of_one_and_shards_hold_the_same(tmp_path):
    data = replace(texts(tmp_path), packing=Packing.best_fit, attention=AttentionScope.document)
    config = run_of(tmp_path / "run", data)
    alone = gptlab.batch(config, 3)
    parts = [gptlab.batch(config, 3, rank, 2) for rank in range(2)]
    for name in ("tokens", "targets", "document_ids"):
        assert torch.equal(torch.cat([part[name] for part in parts]), alone[name])
    prepare_shards(texts(tmp_path), config.tokenizer, tmp_path / "shards", shard_tokens=50, progress=False)
    sharded = replace(
        config,
        data=ShardsConfig(
            path=str(tmp_path / "shards"), packing=Packing.best_fit, attention=AttentionScope.document, shuffle=False
        ),
        tokenizer=TokenizerFileConfig(path=str(tmp_path / "shards" / "tokenizer.json")),
    )
    one, many = (gptlab.batch(replace(c, data=replace(c.data, shuffle=False)), 0) for c in (config, sharded))
    # Their splits differ; each document is whole, or cut where it is longer than a sequence.
    assert many["tokens"].shape == one["tokens"].shape and (many["targets"][:, 0] >= 0).all()


def test_packed_responses_cost_what_they_cost_alone(tmp_path):
    given = of_objective("instruction", tmp_path)
    model = small_run(tmp_path / "x").model
    model = replace(model, context_length=40)
    losses, sequences = {}, {}
    for packing in (Packing.none, Packing.best_fit):
        data = replace(given["data"], packing=packing, attention=AttentionScope.document)
        objective = given["objective"]
        config = run_of(tmp_path / packing.value, data, objective=objective, model=model, batch_tokens=160)
        run = train(config)
        losses[packing] = read_metrics(tmp_path / packing.value / "metrics.csv")[0]["val/loss"]
        sequences[packing] = run.summary.get("packing")
    assert losses[Packing.best_fit] == pytest.approx(losses[Packing.none], abs=1e-5)
    found = sequences[Packing.best_fit][""]
    assert sequences[Packing.none] is None and found["n_sequences"] < found["n_documents"] / 2


def test_steps_that_grow(tmp_path):
    warmups = {"batch_warmup": [[96, 32], [200, 64]], "length_warmup": [[130, 4]], "batch_tokens": 128}
    given = {**warmups, "budget_steps": None, "budget_tokens": 700, "schedule": CosineConfig(warmup_tokens=100)}
    config = run_of(tmp_path / "run", small_run(tmp_path / "x").data, **given)
    run = train(config)
    rows = step_rows(tmp_path / "run" / "metrics.csv")
    tokens = [32, 64, 96, 160, 224, 352, 480, 608]
    assert [row["tokens"] for row in rows] == tokens and run.summary["tokens"] == 608
    read = gptlab.open_run(tmp_path / "run").config
    assert (read.batch_warmup, read.length_warmup) == (warmups["batch_warmup"], warmups["length_warmup"])
    factors = [row["train/lr"] / 1e-2 for row in rows]
    assert factors[:4] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5]), "the fourth step reaches 100 tokens"
    # The same samples in the same order, a step as many as it takes, some of them in parts.
    usual = replace(config, batch_warmup=[], length_warmup=[], batch_tokens=16)
    stream = torch.cat([gptlab.batch(usual, i)["tokens"] for i in range(608 // 16)])
    shapes = [gptlab.batch(config, step)["tokens"].shape for step in range(8)]
    assert [tuple(shape) for shape in shapes] == [(2, 4, 4)] * 3 + [(4, 4, 4), (4, 16)] + [(8, 16)] * 3
    read = torch.cat([gptlab.batch(config, step)["tokens"].flatten(1) for step in range(8)])
    assert torch.equal(read, stream)
    for rank in range(2):
        part = gptlab.batch(config, 3, rank, 2)["tokens"]
        assert torch.equal(part, gptlab.batch(config, 3)["tokens"][2 * rank : 2 * rank + 2])
    roll_back_to(tmp_path / "run", tmp_path / "again", 2)
    train(replace(config, run_dir=str(tmp_path / "again")))
    names = ("step", "tokens", "train/loss", "train/grad_norm", "train/lr")
    again = step_rows(tmp_path / "again" / "metrics.csv")
    assert [[row[n] for n in names] for row in again] == [[row[n] for n in names] for row in rows]


def test_the_plan_of_steps_that_grow(tmp_path, capsys):
    data = small_run(tmp_path / "x").data
    config = run_of(tmp_path / "run", data, batch_warmup=[[64, 32]], length_warmup=[[64, 8]], budget_steps=3)
    train(config)
    out = " ".join(capsys.readouterr().out.split())
    assert "budget 192 tokens 3 steps" in out and "32 tokens from step 0, 128 tokens from step 2" in out
    assert "in parts of 8 tokens before 64" in out and "at the full length" in out


D = {"attention": AttentionScope.document}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_warmup": [[64, 256]]}, r"batch_warmup=\[\[64, ?256\]\].*nor exceed batch_tokens, 128"),
        ({"batch_warmup": [[64, 64], [32, 64]]}, "the tokens of its points must increase"),
        ({"batch_warmup": [[64, 40]]}, "a step of 40 tokens is not divisible by 16 .*use 32 or 48"),
        ({"batch_warmup": [64, 32]}, "is no list of points; write batch_warmup="),
        ({"length_warmup": [[64, 5]]}, "5 does not divide the context length 16; use 4 or 8"),
        ({"length_warmup": [[64, 8]], "objective": "masked_lm"}, "objective=masked_lm learns from other examples"),
        ({"batch_warmup": [[64, 32]], "rollback": True}, "rollback leaves out whole steps.*action=skip"),
        ({"data": D, "objective": "masked_lm"}, "data.attention=document works with objective=.*causal_lm.* alone"),
        ({"data": D, "objective": "span_corruption"}, "data.attention=document works with objective="),
        ({"data": {"packing": Packing.best_fit}, "objective": "classification"}, "data.packing=best_fit works with"),
        ({"data": {"packing": Packing.stream}, "objective": "instruction"}, "data.packing=stream would cut records"),
        ({"data": {"boundary_targets": False}, "objective": "instruction"}, "has no effect on records"),
        ({"data": {"packing": Packing.none, "stride": 3}}, "data.stride=3 is for sliding windows"),
        (
            {"data": D, "objective": "instruction", "t5": True},
            "data.attention=document needs a model with document_ids",
        ),
        ({"data": {"packing": Packing.best_fit}, "objective": "instruction", "t5": True}, "data.packing=best_fit puts"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, change, message):
    change = dict(change)
    given = of_objective(change.pop("objective", "causal_lm"), tmp_path)
    given["data"] = replace(given.get("data", small_run(tmp_path / "x").data), **change.pop("data", {}))
    if change.pop("t5", False):
        given["model"] = EncoderDecoderConfig(n_layer=1, n_head=2, d_model=32, context_length=16)
    if change.pop("rollback", False):
        given["callbacks"] = CallbacksConfig(spike=SpikeConfig(action=SpikeAction.rollback))
    with pytest.raises(UserError, match=message):
        small_run(tmp_path / "run", **given, **change).check()


def test_sources_of_a_mixture_are_packed_alike(tmp_path):
    one, other = texts(tmp_path), replace(texts(tmp_path), val_fraction=0.2)
    data = MixtureConfig(
        sources={"a": one, "b": other}, weights={"a": 0.5, "b": 0.5}, packing=Packing.best_fit, attention=D["attention"]
    )
    config = run_of(tmp_path / "run", data)
    assert set(train(config).summary["packing"]) == {"a", "b"}
    batch = gptlab.batch(config, 0)
    assert batch["document_ids"].shape == batch["tokens"].shape and (batch["targets"] == IGNORE_INDEX).any()
    plain = replace(config, data=replace(data, packing=None, attention=AttentionScope.sequence))
    fields = plain.identity_fields()["data"]
    assert "packing" not in fields and "attention" not in fields["sources"]["a"]
