"""Runs side by side: figures of groups, and what is compared with what."""

import json
import math
import statistics

import numpy as np
import pytest
from small_runs import small_run, write_trained

import gptlab
from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.errors import UserError
from gptlab.lab.compare import At, compare, unit_of
from gptlab.lab.statistics import Verdict
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.config import MaskedLMConfig
from gptlab.runs.folder import RunFolder
from gptlab.training.config import AdamWConfig, CallbacksConfig
from gptlab.training.loop import train


def write_group(folder, lr, finals, *, first_seed=0, **options):
    """Runs that differ in their seeds, with these losses at their ends."""
    for seed, final in enumerate(map(float, finals), first_seed):
        losses = (3.0 + seed / 1000, final - 0.5 if seed == 1 else final + 0.5, final)
        write_trained(folder / f"lr={lr},seed={seed}", losses, optimizer=AdamWConfig(lr=lr), seed=seed, **options)


@pytest.fixture
def two(tmp_path):
    base = 2 + np.array([0.01, -0.02, 0.015, 0.0, -0.01, 0.02, 0.005, -0.015])
    write_group(tmp_path, 0.001, base)
    write_group(tmp_path, 0.003, base - 0.02 - np.array([1, -2, 0, 3, -1, 2, -3, 1]) / 1000)
    return tmp_path, base


def test_figures_of_groups_and_the_sentence(two):
    folder, base = two
    found = gptlab.compare(folder)
    assert list(found.groups) == ["optimizer.lr=0.001", "optimizer.lr=0.003"]
    one = found.over_seeds("optimizer.lr=0.001", "val/loss")
    assert one.n == 8 and one.mean == pytest.approx(base.mean()) and one.deviation == pytest.approx(base.std(ddof=1))
    best = found.over_seeds("optimizer.lr=0.001", "val/loss", At.best)
    assert best.mean == pytest.approx(base.mean() - 0.5 / 8)
    (comparison,) = found.comparisons.values()
    assert comparison.verdict is Verdict.better and comparison.n == (8, 8)
    assert comparison.sentence.startswith("better by 0.020 nats (95%: 0.01")
    text = found.text()
    assert "val/loss against lr=0.001 (last values, lower is better):" in text
    header, *rows = text.splitlines()[:3]
    assert header.split()[:3] == ["lr", "n", "val/loss"] and "compute" in header
    assert rows[0].split()[:5] == ["0.001", "8", f"{base.mean():.4f}", "±", f"{base.std(ddof=1):.4f}"]
    by_bytes = gptlab.compare(folder, metric="val/bits_per_byte")
    (other,) = by_bytes.comparisons.values()
    assert other.difference == pytest.approx(comparison.difference / math.log(2)) and "bits per byte" in other.sentence
    # The other way round.
    (turned,) = gptlab.compare(folder, baseline="optimizer.lr=0.003").comparisons.values()
    assert turned.verdict is Verdict.worse and turned.difference == -comparison.difference
    assert gptlab.compare(folder, baseline="lr=0.003,seed=2").baseline == "optimizer.lr=0.003"


def test_every_run_and_the_best_first(two):
    folder, _ = two
    found = compare(folder)
    lines = found.table(by_run=True).splitlines()
    assert len(lines) == 17 and lines[1].split()[:3] == ["lr=0.001,seed=0", "0.001", "finished"]
    assert found.table(best_first=True).splitlines()[1].startswith("0.003")
    assert found.table().splitlines()[1].startswith("0.001")


def test_json_has_all_of_it(two):
    folder, base = two
    write_trained(folder / "diverged", [3.0, math.nan], optimizer=AdamWConfig(lr=1.0))
    found = json.loads(json.dumps(compare(folder).plain(), allow_nan=False))
    assert found["metric"] == "val/loss" and found["differs"] == ["optimizer.lr"] and found["baseline"]
    by_name = {group["group"]: group for group in found["groups"]}
    group = by_name["optimizer.lr=0.001"]
    assert group["metrics"]["val/loss"]["mean"] == pytest.approx(statistics.fmean(base))
    assert group["differs"] == {"optimizer.lr": 0.001} and len(group["runs"]) == 8
    run = group["runs"][1]
    assert run["last"]["val/loss"] == base[1] and run["best"]["val/loss"] == base[1] - 0.5
    assert run["tokens"] == 3 * 128 and run["flops"] == 3 * 128 * 1e6 and run["seed"] == 1
    assert "diverged is left out: its val/loss is not finite" in found["notes"]
    assert [one["verdict"] for one in found["comparisons"]] == ["too few seeds", "better"]


def test_runs_that_did_not_finish_are_shown_and_do_not_count(two):
    folder, _ = two
    failed = [{"event": "failed", "step": 1, "error": "Spike: the loss is nan"}]
    write_trained(folder / "f", [9.0], summary={}, events=failed, optimizer=AdamWConfig(lr=0.003), seed=50)
    write_trained(folder / "i", [9.0], summary={"finished": False}, optimizer=AdamWConfig(lr=0.003), seed=51)
    write_trained(folder / "r", [9.0, 8.0], summary={}, optimizer=AdamWConfig(lr=0.1), seed=52)
    with RunFolder(folder / "r", writes=True).lock():
        found = compare(folder)
    text = found.text()
    assert found.over_seeds("optimizer.lr=0.003", "val/loss").n == 8
    assert "f: failed at step 1 of 1 (Spike: the loss is nan)" in text
    assert "i: interrupted at step 1 of 1" in text and "r: running at step 2 of 2" in text
    assert list(found.comparisons) == ["optimizer.lr=0.003"]  # the group of the running one has nothing to compare
    assert " running " in found.table(by_run=True)
    with pytest.raises(UserError, match=r"baseline=r has no finished run; groups: lr=0\.003; lr=0\.001$"):
        compare(folder, baseline="r")


def test_what_cannot_be_compared_says_why(tmp_path):
    write_group(tmp_path / "a", 0.001, [2.0, 2.1])
    write_group(tmp_path / "b", 0.003, [2.0, 2.1], content="e" * 64)
    found = compare(tmp_path)
    (comparison,) = found.comparisons.values()
    assert comparison.verdict is Verdict.refused
    assert "not compared: validation texts differ (content dddddddddddddddd and content eeee" in comparison.sentence
    # The same corpus with another part of it for validation.
    write_group(tmp_path / "c", 0.001, [2.0, 2.1])
    more = small_run(tmp_path / "x").data
    more.path, more.val_fraction = "text.txt", 0.2
    write_group(tmp_path / "d", 0.002, [2.0, 2.1], data=more)
    found = compare([tmp_path / "c", tmp_path / "d"])
    assert "data.val_fraction is" in next(iter(found.comparisons.values())).sentence

    rows = [{"step": 1, "tokens": 1, "val/accuracy": 0.5}]
    write_trained(tmp_path / "e", rows=rows, optimizer=AdamWConfig(lr=0.5))
    found = compare([tmp_path / "c", tmp_path / "e"])
    assert "not compared: e has no val/loss; it has val/accuracy" in found.text()
    masks = {"model": small_run(tmp_path / "y").model}
    write_trained(tmp_path / "f1", objective=MaskedLMConfig(mask_prob=0.15), **masks)
    write_trained(tmp_path / "f2", objective=MaskedLMConfig(mask_prob=0.3), **masks)
    assert (
        "objective.mask_prob differ, and val/loss means something else"
        in compare([tmp_path / "f1", tmp_path / "f2"]).text()
    )
    assert "objectives differ (causal_lm and masked_lm)" in compare([tmp_path / "c", tmp_path / "f1"]).text()
    # The training loss is of no validation text.
    assert "not compared" not in compare([tmp_path / "a", tmp_path / "b"], metric="train/loss").text()


def write_evaluated(folder, lr, values, options, *, probe="p" * 64, **given):
    """Runs with an evaluation during training called novel; `probe` is what inputs.json says of it."""
    for seed, value in enumerate(values):
        rows = [
            {"step": step, "tokens": step, "train/loss": 4.0 - step - lr - seed / 100, "val/loss": 2.0}
            | {
                "eval/novel/loss": value,
                "eval/novel/perplexity": math.exp(value),
                "eval/novel/bits_per_byte": value / 2,
            }
            for step in (1, 2)
        ]
        known = {"callbacks.evaluate.novel": probe} if probe else {}
        callbacks = CallbacksConfig(sample=None, plot=False, evaluate={"novel": options})
        where = folder / f"lr={lr},seed={seed}"
        write_trained(
            where, rows=rows, optimizer=AdamWConfig(lr=lr), seed=seed, callbacks=callbacks, inputs=known, **given
        )


METRIC = "eval/novel/bits_per_byte"


def test_an_evaluation_during_training_is_compared_where_it_is_the_same(tmp_path):
    write_evaluated(tmp_path / "a", 0.001, [2.0, 2.1], {"corpus": ["novel.txt"]})
    # Another training text, another file of the same text, and another interval: all the same to the evaluation.
    other = {"corpus": ["copy.txt"], "every_steps": 7}
    write_evaluated(tmp_path / "b", 0.002, [1.9, 2.02], other, content="e" * 64)
    found = compare(tmp_path, metric=METRIC)
    (comparison,) = found.comparisons.values()
    assert comparison.n == (2, 2) and comparison.difference == pytest.approx((1.9 + 2.02) / 4 - (2.0 + 2.1) / 4)
    assert "validation texts differ" in compare(tmp_path).text()  # which are another matter
    assert METRIC in compare(tmp_path).table().splitlines()[0] and "eval/novel/loss" not in compare(tmp_path).table()


def test_evaluations_that_differ_are_not_compared(tmp_path):
    write_evaluated(tmp_path / "a", 0.001, [2.0, 2.1], {"corpus": ["novel.txt"]})
    write_evaluated(tmp_path / "b", 0.002, [1.9, 2.0], {"corpus": ["novel.txt"]}, probe="q" * 64)
    found = compare(tmp_path, metric=METRIC)
    (comparison,) = found.comparisons.values()
    assert comparison.verdict is Verdict.refused
    assert "the texts of callbacks.evaluate.novel differ (content pppppppppppppppp and qqqq" in comparison.sentence
    # Seeds of one config are no group where their evaluations differ, as their mean would be of two things; and where
    # another metric is compared they are one.
    write_evaluated(tmp_path / "c", 0.003, [1.0], {"corpus": ["novel.txt"], "stride": 4}, probe="r" * 64)
    write_evaluated(tmp_path / "c2", 0.003, [1.0, 5.0], {"corpus": ["novel.txt"], "stride": 8}, probe="s" * 64)
    (tmp_path / "c2" / "lr=0.003,seed=0").rename(tmp_path / "gone")
    found = compare([tmp_path / "c", tmp_path / "c2"], metric=METRIC)
    assert list(found.groups) == ["evaluate.novel.content=rrrrrrrr", "evaluate.novel.content=ssssssss"]
    assert "callbacks.evaluate.novel.stride is 4 and 8" in found.text()
    assert len(compare([tmp_path / "c", tmp_path / "c2"]).groups) == 1
    # A run of an older version did not record the text: its options decide.
    old = {"probe": None}
    write_evaluated(tmp_path / "d", 0.004, [1.0, 1.1], {"corpus": ["novel.txt"], "every_steps": 3}, **old)
    write_evaluated(tmp_path / "e", 0.005, [1.0, 1.1], {"corpus": ["novel.txt"], "stride": 8}, **old)
    sentences = [one.sentence for one in compare([tmp_path / x for x in "ade"], metric=METRIC).comparisons.values()]
    assert "2 paired seeds" in sentences[0] and "callbacks.evaluate.novel.stride is null and 8" in sentences[1]


def test_tokenizers_that_differ_are_sent_to_the_bits_per_byte_of_the_same_text(tmp_path):
    write_evaluated(tmp_path / "a", 0.001, [2.0, 2.1], {"corpus": ["novel.txt"]})
    write_evaluated(tmp_path / "b", 0.002, [1.9, 2.0], {"corpus": ["novel.txt"]})
    for i, run in enumerate(sorted(tmp_path.glob("?/lr=*"))):
        ByteTokenizer(["<x>"] if i > 1 else []).save(run / "tokenizer.json")
    for metric in ("eval/novel/loss", "eval/novel/perplexity"):
        assert "use metric=eval/novel/bits_per_byte" in compare(tmp_path, metric=metric).text()
    assert "not compared" not in compare(tmp_path, metric=METRIC).text()
    assert "not both runs have bits per byte" in compare(tmp_path, metric="val/loss").text()


def test_who_failed_is_missed(two):
    """Of what is left nothing is decided: who failed may have been the worst."""
    folder, _ = two
    whole = next(iter(compare(folder).comparisons.values()))
    assert whole.verdict is Verdict.better and whole.n_failed == (0, 0)
    failed = [{"event": "failed", "step": 1, "error": "Spike: the loss is nan"}]
    options = {"optimizer": AdamWConfig(lr=0.003)}
    write_trained(folder / "again", [9.0], summary={}, events=failed, seed=3, **options)  # seed 3 has finished since
    assert next(iter(compare(folder).comparisons.values())).verdict is Verdict.better
    write_trained(folder / "x", [9.0], summary={}, events=failed, seed=50, **options)
    write_trained(folder / "y", [9.0, math.nan], seed=51, **options)
    found = compare(folder)
    (one,) = found.comparisons.values()
    assert one.verdict is Verdict.suggested_better and one.n_failed == (2, 0) and one.n == (8, 8)
    assert (
        one.sentence.startswith("suggested: better by 0.020 nats")
        and "2 of 10 seeds of the group failed" in one.sentence
    )
    assert found.table().splitlines()[1].split()[:2] == ["0.003", "8"] or "0.003     8" in found.table()
    assert "y: finished, its val/loss is not finite" in found.text()
    # The other way round the baseline misses them.
    (turned,) = compare(folder, baseline="lr=0.003").comparisons.values()
    assert turned.verdict is Verdict.suggested_worse and "2 of 10 seeds of the baseline failed" in turned.sentence
    # At its best value the one that diverged is a seed as any other.
    assert next(iter(compare(folder, at="best").comparisons.values())).n_failed == (1, 0)


def test_a_run_without_the_metric_is_left_out_and_its_group_is_not(tmp_path):
    write_group(tmp_path, 0.001, [2.0, 2.1, 2.2])
    write_group(tmp_path, 0.003, [1.9, 2.0])
    write_trained(
        tmp_path / "c", rows=[{"step": 1, "tokens": 1, "train/loss": 1.0}], optimizer=AdamWConfig(lr=0.003), seed=2
    )
    found = compare(tmp_path)
    (comparison,) = found.comparisons.values()
    assert (
        comparison.n == (2, 2) and comparison.n_failed == (0, 0) and "c is left out: it has no val/loss" in found.notes
    )
    assert "c: finished, it has no val/loss" in found.text()


def test_the_baseline_is_named_as_a_person_may(two, monkeypatch):
    folder, _ = two
    label = "optimizer.lr=0.003"
    monkeypatch.chdir(folder.parent)
    (folder / "all of it").mkdir()
    for run in folder.glob("lr=0.003*"):
        run.rename(folder / "all of it" / run.name)
    for name in (label, "lr=0.003", "lr=0.003,seed=2", folder / "all of it" / "lr=0.003,seed=2"):
        assert compare(folder, baseline=str(name)).baseline == label
    assert compare(folder, baseline=f"{folder.name}/all of it").baseline == label  # which has runs of one group alone
    with pytest.raises(UserError, match=r"baseline=.* holds runs of 2 groups; groups: lr=0\.003; lr=0\.001$"):
        compare(folder, baseline=str(folder))
    write_trained(folder / "z", optimizer=AdamWConfig(lr=1e-4, weight_decay=0.5), batch_tokens=256)
    assert compare(folder, baseline="C").names[compare(folder, baseline="C").baseline] == "C"
    with pytest.raises(UserError, match=r"baseline=D is no group .*; groups: A \(optimizer\.lr=.*; C \("):
        compare(folder, baseline="D")


def test_bits_per_byte_where_tokenizers_differ(tmp_path):
    write_group(tmp_path / "a", 0.001, [2.0, 2.1, 2.2])
    write_group(tmp_path / "b", 0.003, [2.0, 2.1, 2.2])
    for i, run in enumerate(sorted(tmp_path.glob("?/lr=*"))):
        ByteTokenizer(["<x>"] if i > 2 else []).save(run / "tokenizer.json")
    found = compare(tmp_path)
    assert found.metric == "val/bits_per_byte"
    assert "note: tokenizers differ, so bits per byte are compared" in found.text()
    assert "use metric=val/bits_per_byte" in compare(tmp_path, metric="val/loss").text()


def test_bit_identical_runs_are_one(tmp_path):
    write_group(tmp_path, 0.001, [2.0, 2.1, 2.2, 2.05, 1.95, 2.15])
    for seed in range(6):  # whatever the seed, the same
        write_trained(tmp_path / f"same{seed}", [3.0, 1.5], optimizer=AdamWConfig(lr=0.003), seed=seed)
    found = compare(tmp_path)
    (comparison,) = found.comparisons.values()
    assert comparison.n == (1, 6) and comparison.verdict is Verdict.too_few
    assert "5 runs bit-identical to another of the same group counted once" in found.notes
    again = tmp_path / "again"
    for seed in range(6):
        for lr in (0.001, 0.003):
            write_trained(again / f"{lr}-{seed}", [3.0, 2 + seed / 10], optimizer=AdamWConfig(lr=lr), seed=seed)
    (comparison,) = compare(again).comparisons.values()
    assert (
        comparison.verdict is Verdict.identical
        and "what differs in their configs changed nothing" in comparison.sentence
    )


def test_several_runs_of_one_seed_are_one_seed(tmp_path):
    write_group(tmp_path / "a", 0.001, [2.0, 2.1])
    write_trained(tmp_path / "b", [3.1, 2.4], optimizer=AdamWConfig(lr=0.001), seed=0)
    write_group(tmp_path / "c", 0.003, [1.9, 1.8])
    found = compare(tmp_path)
    (comparison,) = found.comparisons.values()
    assert comparison.n == (2, 2) and comparison.difference == pytest.approx((1.9 + 1.8) / 2 - (2.2 + 2.1) / 2)
    assert "of several runs of optimizer.lr=0.001 with seed 0 the mean counts" in found.notes


def test_many_differences_have_a_table_of_their_own(tmp_path):
    write_trained(tmp_path / "a", model_tag="small")
    model = DecoderConfig(n_layer=3, n_head=4, d_model=64, context_length=32, bias=True)
    write_trained(tmp_path / "b", model=model, optimizer=AdamWConfig(lr=3e-4, weight_decay=0.5), batch_tokens=256)
    text = compare(tmp_path).text()
    lines = text.splitlines()
    assert lines[0].split() == ["A", "B"] and "optimizer.lr" in text and "val/loss against A " in text
    assert ["model.n_layer", "2", "3"] in [line.split() for line in lines]
    # A few keys are columns, beside the letter of the group.
    write_trained(tmp_path / "c", optimizer=AdamWConfig(lr=3e-4, weight_decay=0.5), batch_tokens=256)
    lines = compare([tmp_path / "a", tmp_path / "c"]).text().splitlines()
    assert lines[0].split()[:5] == ["group", "lr", "weight_decay", "batch_tokens", "n"] and lines[2].startswith("B ")


def test_a_sweep_of_single_runs_is_told_once_that_it_has_no_seeds(tmp_path):
    for i in range(1, 6):
        write_trained(tmp_path / f"{i}", [3.0, 2.0 + i / 100], optimizer=AdamWConfig(lr=i / 1000))
    found = compare(tmp_path)
    assert len(found.comparisons) == 4 and len(found.sentences()) == 1 and "one seed of each" in found.text()


def test_wrong_options(tmp_path):
    write_group(tmp_path, 0.001, [2.0])
    with pytest.raises(UserError, match=r"metric=val/los is a metric of none of these runs; did you mean val/loss\?"):
        compare(tmp_path, metric="val/los")
    with pytest.raises(
        UserError, match="baseline=x is no group of these runs, and no run or folder of them; groups: custom-custom"
    ):
        compare(tmp_path, baseline="x")
    write_trained(tmp_path / "only" / "r", [2.0], summary={})
    with pytest.raises(UserError, match=r"the run is not finished: r is interrupted at step 1 of 1; the command"):
        compare(tmp_path / "only")
    assert [unit_of(name) for name in ("val/loss", "val/bits_per_byte", "val/accuracy")] == [
        "nats",
        "bits per byte",
        "",
    ]


def test_real_runs(tmp_path):
    for lr in (1e-2, 2e-2):
        train(small_run(tmp_path / f"lr={lr},seed=1", optimizer=AdamWConfig(lr=lr), seed=1))
    found = compare([tmp_path / "lr=*"], effect=0.05)
    assert [len(records) for records in found.groups.values()] == [1, 1] and found.keys == ["optimizer.lr"]
    assert "1 paired seed" in found.text() and "MFLOP" in found.text()


def test_the_losses_of_a_mixtures_sources_are_in_the_table(tmp_path):
    for weight, losses in ((0.1, (2.0, 3.0)), (0.5, (2.5, 2.4))):
        row = {"step": 1, "tokens": 128, "val/loss": 2.7, "val/bits_per_byte": 3.9, "train/a/epochs": 0.1}
        row |= {f"val/{name}/loss": loss for name, loss in zip("ab", losses, strict=True)}
        row |= {f"val/{name}/bits_per_byte": loss * 1.4 for name, loss in zip("ab", losses, strict=True)}
        write_trained(tmp_path / f"w={weight}", rows=[row], optimizer=AdamWConfig(lr=weight))
    found = compare(tmp_path)
    assert found.metrics == ["val/loss", "val/bits_per_byte", "val/a/loss", "val/b/loss"]
    assert "val/b/loss" in found.text()
    by_source = compare(tmp_path, metric="val/b/loss")
    sources = {"a": TextConfig(path="a.txt"), "b": TextConfig(path="b.txt")}
    for weight in (0.1, 0.5):
        data = MixtureConfig(sources=sources, weights={"a": weight})
        rows = [{"step": 1, "tokens": 128, "val/loss": 2.7, "val/a/loss": 2.0, "val/b/loss": 3.0}]
        write_trained(tmp_path / "mixtures" / f"w={weight}", rows=rows, data=data, tokenizer=ByteConfig())
    (comparison,) = compare(tmp_path / "mixtures").comparisons.values()
    assert "data.weights.a is 0.1 and 0.5); use metric=val/a/loss or metric=val/b/loss" in comparison.sentence
    (comparison,) = compare(tmp_path / "mixtures", metric="val/a/loss").comparisons.values()
    assert "not compared" not in comparison.sentence
    for n, shares in ((1, {"a": 0.75, "b": 0.25}), (2, {"a": 0.125, "b": 0.875})):  # of one schedule, by the budget
        data = MixtureConfig(sources=sources, schedule={"a": [[0, 1.0], [1000, 0.0]]})
        summary = {"shares": shares}
        write_trained(
            tmp_path / "schedule" / f"n={n}",
            rows=rows,
            summary=summary,
            data=data,
            tokenizer=ByteConfig(),
            budget_steps=n,
        )
    (comparison,) = compare(tmp_path / "schedule").comparisons.values()
    assert "shares of sources, which differ (a 0.75, b 0.25 and a 0.125, b 0.875)" in comparison.sentence
    assert by_source.metrics[0] == "val/b/loss" and list(by_source.comparisons) == ["optimizer.lr=0.5"]
