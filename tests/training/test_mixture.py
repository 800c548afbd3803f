"""Runs on a mixture: the same batches on any number of devices and after a resume, losses and epochs by source."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import of_objective, small_run, step_rows, write_text

import gptlab
from gptlab.config import config_from_plain, to_plain
from gptlab.data.config import Split
from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.mixture.prepare import prepare_run
from gptlab.data.order import example_index
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import ShardsConfig, TableConfig, TextConfig
from gptlab.data.tokenizers.config import ByteConfig, TokenizerFileConfig
from gptlab.errors import UserError
from gptlab.objectives.config import InstructionConfig
from gptlab.runs.folder import read_metrics
from gptlab.runs.run import open_run
from gptlab.training.config import CallbacksConfig, CheckpointConfig, TrainerConfig
from gptlab.training.loop import sources, train
from gptlab.training.module import Evaluated, mixed

SEQUENCES = 8  # of a step, of 16 bytes


def mixture(folder, **given):
    """Ten steps of a mixture of two texts, capitals and small letters."""
    folder.mkdir(exist_ok=True)
    small = write_text(folder / "small.txt", 9_000)
    (folder / "capitals.txt").write_text(small.read_text()[::-1].upper()[:3_000])
    texts = {name: TextConfig(path=str(folder / f"{name}.txt"), val_fraction=0.2) for name in ("small", "capitals")}
    data = {"sources": texts, "weights": {"capitals": 0.3}} | given.pop("data", {})
    callbacks = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=4), sample=None, plot=False)
    return small_run(
        given.pop("run_dir", folder / "run"), **{"data": MixtureConfig(**data), "callbacks": callbacks, **given}
    )


def text_of(batch):
    return ["".join(map(chr, tokens)) for tokens in batch["tokens"].tolist()]


def test_devices_share_the_batches_of_one(tmp_path):
    schedule = {"weights": {}, "schedule": {"capitals": [[0, 0.1], [1280, 0.9]]}}
    for config in (mixture(tmp_path), mixture(tmp_path, data=schedule)):
        for step in (0, 3, 500):
            alone = gptlab.batch(config, step)["tokens"]
            for n in (2, 4):
                parts = [gptlab.batch(config, step, rank, n)["tokens"] for rank in range(n)]
                assert torch.equal(torch.cat(parts), alone)


def test_the_source_of_each_example_is_known_and_each_prefix_has_its_share(tmp_path):
    config = mixture(tmp_path)
    capital, n = 0, 0
    small = write_text(tmp_path / "again.txt", 9_000).read_text()[: int(9_000 * 0.8)]
    order = example_index(config.seed, np.arange(200), (len(small) - 1) // 16)
    for step in range(12):
        texts, of = text_of(gptlab.batch(config, step)), sources(config, step)
        for text, source in zip(texts, of, strict=True):
            assert source["name"] == ("capitals" if text.upper() == text else "small"), text
            if source["name"] == "small":  # in the order of a run on it alone
                assert source["example"] == order[n - capital]
                start = 16 * source["example"]
                assert text == small[start : start + 16]
            capital, n = capital + (source["name"] == "capitals"), n + 1
            assert abs(capital - 0.3 * n) <= 0.5
    assert sources(small_run(tmp_path / "other"), 0) is None


def test_losses_of_the_sources_and_their_mean(tmp_path):
    config = mixture(tmp_path, data={"test_fraction": 0.1})
    run = train(config)
    summary, (model, _) = run.summary, run.load()
    found = {}
    for name, text in (("small", "small.txt"), ("capitals", "capitals.txt")):
        ids = torch.tensor(list((tmp_path / text).read_bytes()))
        start, end = round(0.7 * len(ids)), round(0.9 * len(ids))
        ids = ids[start:end]
        total = 0.0
        for at in range(0, len(ids) - 1, 16):
            piece = ids[at : at + 17]
            with torch.no_grad():
                logits = model.head.logits(model.hidden_states(piece[None, :-1]))[0]
            total += F.cross_entropy(logits.double(), piece[1:], reduction="sum").item()
        found[name] = total / (len(ids) - 1), total / math.log(2) / len(ids), len(ids)
        assert summary[f"val/{name}/loss"] == pytest.approx(found[name][0], abs=1e-5)
        assert summary[f"val/{name}/bits_per_byte"] == pytest.approx(found[name][1], abs=1e-5)
    loss = 0.7 * found["small"][0] + 0.3 * found["capitals"][0]
    bytes_per_token = sum(w * found[n][2] / (found[n][2] - 1) for n, w in (("small", 0.7), ("capitals", 0.3)))
    assert summary["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert summary["val/perplexity"] == pytest.approx(math.exp(loss), abs=1e-2)
    assert summary["val/bits_per_byte"] == pytest.approx(loss / math.log(2) / bytes_per_token, abs=1e-5)
    assert {f"test/{name}/loss" for name in found} | {"test/loss"} <= set(summary)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows if "val/capitals/loss" in row] == [0, 5, 10]
    n_capitals = (int(0.7 * 3_000) - 1) // 16  # sequences
    for row in rows[1:]:
        samples = row["step"] * SEQUENCES
        assert abs(row["train/capitals/epochs"] * n_capitals - 0.3 * samples) <= 0.5
    assert summary["shares"] == {"capitals": 0.3, "small": 0.7}
    assert summary["epochs"]["capitals"] == rows[-1]["train/capitals/epochs"] == 24 / n_capitals


def test_what_a_run_says_of_its_sources(tmp_path, capsys):
    train(mixture(tmp_path, data={"weights": {"capitals": 0.0}}, budget_steps=2))
    out = capsys.readouterr().out
    assert "a mixture of 2 sources" in out
    assert "capitals: 0 of the run, 0.00 epochs" in out and "small: 1 of the run, 0.04 epochs" in out
    summary = open_run(tmp_path / "run").summary
    assert summary["val/loss"] == summary["val/small/loss"] != summary["val/capitals/loss"]
    assert f"  capitals: validation loss {summary['val/capitals/loss']:.4f}, 0 of the run" in out
    assert f"val/small/loss {summary['val/small/loss']:.4f} run" in out.splitlines()[-1]


def test_the_loss_of_a_mixture_is_the_mean_by_shares():
    of = {
        "a": Evaluated({"loss": 2.0, "accuracy": 0.5}, {"targets": 100.0}, 400.0),
        "b": Evaluated({"loss": 4.0, "accuracy": 0.1}, {"targets": 10.0}, 20.0),
    }
    found = mixed(of, {"a": 0.25, "b": 0.75})
    assert found.means == pytest.approx({"loss": 3.5, "accuracy": 0.2})
    assert found.n_bytes == pytest.approx(0.25 * 4 + 0.75 * 2) and found.counts == {"targets": 1.0}
    assert mixed(of, {"a": 0.2, "b": 0.2, "no validation": 0.6}).means["loss"] == pytest.approx(3.0)
    assert mixed(of, {"a": 0.0, "b": 0.0, "no validation": 1.0}).means["loss"] == pytest.approx(3.0)
    of["c"] = Evaluated({"loss": math.nan, "accuracy": math.nan}, {"targets": 0.0}, 0.0)
    assert mixed(of, {"a": 1.0, "b": 0.0, "c": 0.0}).means["loss"] == 2.0


def test_more_epochs_than_allowed_are_refused_before_training(tmp_path):
    config = mixture(tmp_path, data={"max_epochs": {"capitals": 2}}, budget_steps=200)
    n = (int(0.8 * 3_000) - 1) // 16
    missing = (round(0.3 * 200 * SEQUENCES) - 2 * n) * 16
    with pytest.raises(UserError, match=rf"data.max_epochs.capitals=2 .*: {missing:,} tokens are missing"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_too_small_is_named(tmp_path):
    config = mixture(tmp_path)
    (tmp_path / "capitals.txt").write_text("A TEXT")
    with pytest.raises(UserError, match=r"data.sources.capitals: the train split has 4 tokens.*data.context_length=3"):
        train(config)
    config.data.weights["capitals"] = 0.0  # then nothing of it is read for training
    train(config)


def test_a_run_that_stopped_goes_on_with_the_samples_that_remain(tmp_path):
    data = {"weights": {}, "schedule": {"capitals": [[0, 0.9], [1280, 0.1]]}}
    straight = train(mixture(tmp_path, data=data, run_dir=tmp_path / "straight")).path
    stopped = mixture(tmp_path, data=data, run_dir=tmp_path / "stopped")
    plain = to_plain(stopped)

    class Pulled(Exception):
        pass

    def pull(trainer, module, outputs, batch, batch_idx):
        if module.finished_steps == 7:
            raise Pulled

    from lightning.pytorch.callbacks import LambdaCallback

    with pytest.raises(Pulled):
        train(stopped, callbacks=[LambdaCallback(on_train_batch_end=pull)])
    folder = train(config_from_plain(plain)).path
    assert learned(folder) == learned(straight)
    events = (folder / "events.jsonl").read_text()
    assert '"continued"' in events and '"step": 4' in events
    plain["data"]["schedule"]["capitals"] = [[0, 0.8], [1280, 0.1]]
    with pytest.raises(UserError, match=r"data.schedule.capitals was .*0.9.* and is .*0.8"):
        train(config_from_plain(plain))


def learned(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in step_rows(folder / "metrics.csv")
    ]


def test_a_source_that_changed_is_named(tmp_path):
    config = mixture(tmp_path, budget_steps=4)
    train(config)
    (tmp_path / "capitals.txt").write_text("OTHER TEXT " * 300)
    with pytest.raises(UserError, match=r"data.sources.capitals has changed since") as refused:
        train(mixture_again(config))
    assert "data.sources.small" not in str(refused.value) and "the corpus" not in str(refused.value)


def mixture_again(config):
    return config_from_plain(to_plain(config))


@pytest.mark.parametrize("objective", ["masked_lm", "span_corruption"])
def test_other_objectives_learn_from_a_mixture(tmp_path, objective):
    given = of_objective(objective, tmp_path)
    corpus = given.pop("data", None) or TextConfig(path=str(write_text(tmp_path / "text.txt")))
    (tmp_path / "more").mkdir()
    for i in range(5):
        (tmp_path / "more" / f"{i}.txt").write_text("other words in these texts " * 30)
    data = {"sources": {"a": corpus, "b": TextConfig(path=str(tmp_path / "more"))}, "weights": {"a": 0.5}}
    summary = train(mixture(tmp_path, data=data, budget_steps=2, **given)).summary
    assert math.isfinite(summary["val/b/loss"])
    assert summary["val/loss"] == pytest.approx((summary["val/a/loss"] + summary["val/b/loss"]) / 2)


def test_tables_are_mixed(tmp_path):
    given = of_objective("instruction", tmp_path)
    table = given.pop("data")
    data = {"sources": {"a": table, "b": TableConfig(path=table.path, prompt="{even}", response="{question}")}}
    data["weights"] = {"a": 0.75}
    config = mixture(tmp_path, data=data, budget_steps=2, objective=InstructionConfig())
    assert sum(source["name"] == "a" for source in sources(config, 0)) == 6
    assert math.isfinite(train(config).summary["val/b/loss"])
    assert prepare_run(config.data, config.tokenizer, progress=False).has_examples


def test_training_in_eval_mode_by_source(tmp_path):
    trainer = TrainerConfig(accelerator="cpu", devices=1, val_check_interval=2, enable_progress_bar=False)
    summary = train(mixture(tmp_path, budget_steps=2, eval_train=True, trainer=trainer)).summary
    expected = 0.3 * summary["train_eval/capitals/loss"] + 0.7 * summary["train_eval/small/loss"]
    assert summary["train_eval/loss"] == pytest.approx(expected)


def test_token_shards_are_a_source_like_the_text_they_were_made_of(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(8):
        (texts / f"{n}.txt").write_text(f"{n} " * 300)
    split = {"split": Split.document, "val_fraction": 0.0}  # shards are split by the text, and files by their names
    config = mixture(tmp_path)
    prepare_shards(
        TextConfig(type="text", path=str(texts), **split), ByteConfig(), tmp_path / "shards", shard_tokens=900
    )
    other = TextConfig(path=str(tmp_path / "capitals.txt"))
    made = {}
    for kind, source in {
        "text": TextConfig(path=str(texts), **split),
        "shards": ShardsConfig(path=str(tmp_path / "shards"), val_fraction=0.0, test_fraction=None),
    }.items():
        config.data = MixtureConfig(sources={"own": source, "other": other}, weights={"own": 0.75})
        config.tokenizer = TokenizerFileConfig(path=str(tmp_path / "shards" / "tokenizer.json"))
        made[kind] = [gptlab.batch(config, step)["tokens"].tolist() for step in (0, 1, 7)]
    assert made["shards"] == made["text"]
