"""A whole run, from config to last line."""

import copy
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from ranks import roll_back_to
from small_runs import small_run, step_rows

from gptlab.config import to_plain
from gptlab.data.sources.config import TextConfig
from gptlab.data.token_file import TokenFile
from gptlab.data.tokenizers.config import TokenizerFileConfig
from gptlab.distributed.config import Recompute, StrategyConfig
from gptlab.distributed.signals import SIGNALS, Failure
from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.folder import RunFolder, read_metrics
from gptlab.training import loop
from gptlab.training.config import (
    AdamWConfig,
    CallbacksConfig,
    CheckpointConfig,
    MuonConfig,
    SampleConfig,
    TrainerConfig,
)
from gptlab.training.loop import train
from gptlab.training.resume import Identity, find_checkpoint

LAST_LINE = r"val/loss \d+\.\d{4} val/perplexity \d+\.\d\d val/bits_per_byte \d+\.\d{4} run (\S+)"


def test_everything_about_a_run_is_in_its_folder(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    computed_at = []  # the number of finished steps
    entropy = TokenFile.unigram_entropy

    def watched(file):
        computed_at.append(len(step_rows(run / "metrics.csv")))
        return entropy(file)

    monkeypatch.setattr(TokenFile, "unigram_entropy", watched)
    config = small_run(run)
    config.callbacks.plot = True
    summary = train(config).summary
    out = capsys.readouterr().out
    last = out.rstrip("\n").splitlines()[-1]
    assert re.fullmatch(LAST_LINE, last) and last.endswith(str(run))
    assert f"next: gptlab generate run={run} prompt='...'; to train on, the same command with budget_steps=20" in out
    assert "parameters" in out and "batch" in out and "unigram entropy" in out
    assert computed_at == [10], "it reads up to 50M tokens: once, at the end"

    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "inputs.json", "tokenizer.json", "metrics.csv", "events.jsonl", "summary.json"),
        *(
            "chain.jsonl",
            "environment.json",
            "forecast.json",
            "loss.png",
            "samples.txt",
            "checkpoints",
            "lock",
            ".running.lock",
        ),
    }
    saved = {"step_00000010.ckpt", "last.ckpt", "best.ckpt", "SHA256SUMS"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == saved
    assert (run / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    rows = step_rows(run / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["tokens"] for row in rows] == [128 * step for step in range(1, 11)]
    assert [row["step"] for row in rows if "val/loss" in row] == [5, 10]
    end = rows[-1]
    assert summary["val/loss"] == end["val/loss"] and summary["finished"]
    assert end["val/perplexity"] == pytest.approx(math.exp(end["val/loss"]))
    assert json.loads((run / "summary.json").read_text()) == summary
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "validated", "validated", "saved", "validated", "saved", "finished"]


def test_validation_is_the_mean_over_every_token_of_the_split(tmp_path):
    config = small_run(tmp_path / "run")
    summary = train(config).summary
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    model = build_model(config.model, 257, seed=0)
    checkpoint.restore_model(model, state.model)
    text = (tmp_path / "text.txt").read_bytes()
    split = torch.tensor(list(text[int(0.9 * len(text)) :]))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(split) - 1, 16):
            window = split[start : start + 17]
            logits = model(window[None, :-1])[0].double()
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert summary["val/loss"] == pytest.approx(total / (len(split) - 1), rel=1e-6)
    assert summary["val/bits_per_byte"] == pytest.approx(total / math.log(2) / len(split), rel=1e-6)


def test_the_validation_before_the_first_step_is_recorded_once(tmp_path):
    config = small_run(tmp_path / "run", eval_train=True)
    config.trainer.limit_val_batches = 1
    train(config)
    first, *_ = read_metrics(tmp_path / "run" / "metrics.csv")
    assert first.keys() - {"step", "tokens"} == {
        f"{split}_part/{name}" for split in ("val", "train_eval") for name in ("loss", "perplexity")
    }
    for _ in range(2):  # the second start finds the row, and no checkpoint
        config = small_run(
            tmp_path / "other", callbacks=CallbacksConfig(checkpoint=None, sample=SampleConfig(), plot=False)
        )
        with pytest.raises(RuntimeError, match="at step 2"):
            train(config, callbacks=[_FailsAtStep(2)])
        rows = read_metrics(tmp_path / "other" / "metrics.csv")
        assert [(row["step"], row["tokens"]) for row in rows][:2] == [(0, 0), (1, 128)]
        model = build_model(config.model, 257, seed=config.seed).eval()
        split = torch.tensor(list((tmp_path / "text.txt").read_bytes()[18_000:]))
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(split) - 1, 16):
                window = split[start : start + 17]
                logits = model(window[None, :-1])[0]
                total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        assert rows[0]["val/loss"] == pytest.approx(total / (len(split) - 1), rel=1e-5)
    assert not (tmp_path / "other" / "samples.txt").exists()


class _FailsAtStep(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.finished_steps == self.step:
            raise RuntimeError(f"at step {self.step}")


def test_accumulation_is_one_large_batch(tmp_path):
    whole = train(small_run(tmp_path / "whole")).summary
    parts = train(small_run(tmp_path / "parts", micro_batch_size=2)).summary
    a, b = (step_rows(tmp_path / name / "metrics.csv") for name in ("whole", "parts"))
    for x, y in zip(a, b, strict=True):
        for name in ("train/loss", "train/grad_norm"):
            assert y[name] == pytest.approx(x[name], rel=1e-5)
    assert parts["val/loss"] == pytest.approx(whole["val/loss"], rel=1e-5)


def test_the_first_loss_and_norm_are_those_of_the_definition(tmp_path):
    """Step 1 worked out without the trainer: the samples, their loss, the gradient's norm, the clipped update."""
    from gptlab.data.examples.windows import SlidingWindows
    from gptlab.data.order import example_index
    from gptlab.data.prepare import prepare

    config = small_run(tmp_path / "run", optimizer=AdamWConfig(lr=1e-2, grad_clip=0.5))
    train(config)
    row = step_rows(tmp_path / "run" / "metrics.csv")[0]
    data = prepare(config.data, config.tokenizer, progress=False)
    windows = SlidingWindows(data.train.tokens, 16, 16)
    batch = torch.from_numpy(windows.gather(example_index(config.seed, torch.arange(8).numpy(), len(windows))))
    model = build_model(config.model, 257, seed=config.seed)
    loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    norm = torch.stack([p.grad.double().square().sum() for p in model.parameters()]).sum().sqrt()
    assert norm > 0.5, "the clip is active"
    assert row["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert row["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    assert row["train/lr"] == pytest.approx(1e-2 / 3)


def test_one_batch_is_overfit(tmp_path):
    config = small_run(tmp_path / "run", budget_steps=120, optimizer=MuonConfig(lr=1e-2, weight_decay=0.0))
    config.data.max_sequences = 8
    config.trainer.val_check_interval = 1.0
    assert train(config).summary["train/loss"] < 0.1


def test_a_finished_run_says_so(tmp_path, capsys):
    first = train(small_run(tmp_path / "run")).summary
    capsys.readouterr()
    assert train(small_run(tmp_path / "run")).summary == first
    out = capsys.readouterr().out
    assert "is finished after 10 steps" in out and re.fullmatch(LAST_LINE, out.rstrip().splitlines()[-1])


def test_where_and_how_a_run_is_shown_may_change_but_not_what_is_learned(tmp_path, capsys):
    """Every field that is not of the identity, changed before a run is continued: no bit changes."""
    straight = train(small_run(tmp_path / "straight")).metrics()
    config = small_run(
        tmp_path / "run", callbacks=CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9))
    )
    config.callbacks.plot = False
    train(config)
    roll_back_to(tmp_path / "run", tmp_path / "again", 5)
    changed = small_run(
        tmp_path / "again",
        model_tag="another",
        data_tag="another",
        name="another",
        plugins=[],
        callbacks=CallbacksConfig(sample=None, plot=False),
    )
    changed.data.n_processes = 1
    changed.trainer.log_every_n_steps = 3
    assert changed.identity_fields() == config.identity_fields() and changed.run_id() == config.run_id()
    run = train(changed)
    assert [event["step"] for event in run.events() if event["event"] == "continued"] == [5]
    assert run.metrics()["train/loss"].equals(straight["train/loss"])


def test_a_changed_config_is_refused_with_the_difference(tmp_path):
    train(small_run(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"another config: .*optimizer\.lr was 0\.01 and is 0\.02"):
        train(small_run(tmp_path / "run", optimizer=AdamWConfig(lr=2e-2)))
    with pytest.raises(ValueError, match=r"resume=null.*resume=auto"):
        train(small_run(tmp_path / "run", resume=None))


def write_bpe(path, *merges):
    """A tokenizer.json of letters and the given merges."""
    letters = [*"abcdefghijklmnopqrstuvwxyz .\n", "<|endoftext|>"]
    tokens = [*letters, *("".join(merge.split()) for merge in merges)]
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(merges)}
    added = {"id": len(letters) - 1, "content": "<|endoftext|>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [added | flags], "model": model}))


@pytest.fixture(scope="module")
def trained_from_files(tmp_path_factory):
    """A finished run whose corpus, tokenizer and initial weights are files."""
    place = tmp_path_factory.mktemp("from_files")
    write_bpe(place / "tokenizer.json", "t h", "a n")
    tokenizer = TokenizerFileConfig(path=str(place / "tokenizer.json"))
    train(small_run(place / "first", tokenizer=tokenizer, budget_steps=2))
    config = small_run(place / "run", tokenizer=tokenizer)
    config.model.init_from = str(place / "first")
    train(config)
    return place, config


def replace_text(place):
    path = place / "text.txt"
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("the", "hte"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def replace_weights(place):
    checkpoint.save(
        (place / "first" / "checkpoints" / "best.ckpt").resolve(),
        checkpoint.load(place / "first" / "checkpoints" / "best.ckpt").state,
        {k: v + 1 for k, v in checkpoint.load(place / "first" / "checkpoints" / "best.ckpt").weights().items()},
    )


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("replace", "what"),
    [
        (replace_text, "the corpus has changed since"),
        (lambda place: write_bpe(place / "tokenizer.json", "t h", "o n"), "the tokenizer has changed since"),
        (replace_weights, "model.init_from names other weights now"),
    ],
    ids=["text", "tokenizer", "weights"],
)
def test_a_run_whose_files_were_replaced_is_refused(trained_from_files, tmp_path, replace, what, finished):
    original, config = trained_from_files
    place = tmp_path / "place"
    shutil.copytree(original, place, symlinks=True)
    config = copy.deepcopy(config)
    config.run_dir, config.data.path = str(place / "run"), str(place / "text.txt")
    config.tokenizer.path, config.model.init_from = str(place / "tokenizer.json"), str(place / "first")
    # The copies are at other paths, which are part of the config; only what they hold is changed below.
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    if not finished:
        shutil.rmtree(place / "run")
        config.callbacks.checkpoint.every_steps, config.callbacks.checkpoint.keep_last = 5, 9
        train(config)
        roll_back_to(place / "run", place / "half", 5)
        config.run_dir = str(place / "half")
    replace(place)
    metrics = (Path(config.run_dir) / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=f"{what}.*restore it, or start another run with name="):
        train(config)
    assert (Path(config.run_dir) / "metrics.csv").read_bytes() == metrics


def test_signals_go_back_to_who_had_them(tmp_path):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    train(small_run(tmp_path / "run"))
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_finished_run_needs_its_data_no_more(tmp_path, capsys):
    config = small_run(tmp_path / "run")
    loss = train(config).summary["val/loss"]
    (tmp_path / "text.txt").unlink()
    assert train(config).summary["val/loss"] == loss
    shown = capsys.readouterr()
    assert "is finished" in shown.out and "not checked" in shown.err and "text.txt does not exist" in shown.err


def test_another_place_is_no_change(tmp_path):
    train(small_run(tmp_path / "run", budget_steps=10))
    (tmp_path / "run" / "summary.json").unlink()
    moved = small_run(tmp_path / "run", micro_batch_size=4)
    assert train(moved).summary["steps"] == 10


def test_a_path_continues_under_another_budget(tmp_path):
    train(small_run(tmp_path / "short"))
    last = tmp_path / "short" / "checkpoints" / "last.ckpt"
    summary = train(small_run(tmp_path / "long", budget_steps=15, resume=str(last))).summary
    rows = step_rows(tmp_path / "long" / "metrics.csv")
    assert summary["steps"] == 15 and [row["step"] for row in rows] == list(range(1, 16))
    with pytest.raises(ValueError, match=r"another model or batch: model\.d_model was 32 and is 64"):
        bigger = DecoderConfig(n_layer=2, n_head=2, d_model=64, context_length=16)
        train(small_run(tmp_path / "big", model=bigger, resume=str(last)))
    with pytest.raises(ValueError, match="at step 10 and the budget is 5"):
        train(small_run(tmp_path / "less", budget_steps=5, resume=str(last)))


def test_a_run_goes_back_to_a_checkpoint_of_its_own(tmp_path):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    straight = train(small_run(tmp_path / "run", callbacks=settings)).summary
    expected = step_rows(tmp_path / "run" / "metrics.csv")
    middle = tmp_path / "run" / "checkpoints" / "step_00000005.ckpt"
    again = train(small_run(tmp_path / "run", callbacks=settings, resume=str(middle))).summary
    rows = step_rows(tmp_path / "run" / "metrics.csv")
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in expected]
    assert again["val/loss"] == straight["val/loss"]
    other = small_run(tmp_path / "other", callbacks=settings, resume=str(middle))
    train(other)
    with pytest.raises(ValueError, match=r"already continued from resume=.*leave resume out"):
        train(other)


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_start_that_is_repeated_continues_whatever_it_began_from(tmp_path, monkeypatch, variable):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    train(small_run(tmp_path / "other", callbacks=settings))
    begun = str(tmp_path / "other" / "checkpoints" / "step_00000005.ckpt")
    for name, resume in (("new", None), ("from", begun)):
        run = train(small_run(tmp_path / name, callbacks=settings, resume=resume))
        roll_back_to(run.path, tmp_path / f"{name} killed", 5 if resume is None else 10)
        again = small_run(tmp_path / f"{name} killed", callbacks=settings, resume=resume)
        if resume is None:
            with pytest.raises(UserError, match="holds a run and resume=null"):
                train(again)
        monkeypatch.setenv(variable, "1")
        assert train(again).summary["val/loss"] == run.summary["val/loss"]
        monkeypatch.delenv(variable)


def test_only_rank_0_judges_what_the_folder_holds(tmp_path, monkeypatch):
    run = train(small_run(tmp_path / "run"))
    identity = Identity(config={}, fields={}, data="", tokenizer="", inputs={}, arithmetic="")
    assert find_checkpoint(None, identity, RunFolder(run.path, writes=False)) is None
    with pytest.raises(UserError, match="holds a run and resume=null"):
        find_checkpoint(None, identity, RunFolder(run.path, writes=True))


def test_a_tokenizer_with_fewer_words_than_the_model(tmp_path):
    config = small_run(tmp_path / "run")
    config.model.vocab_size = 50_000
    train(config)
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step") == 2


def test_changed_text_is_refused(tmp_path):
    train(small_run(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    text = tmp_path / "text.txt"
    text.write_text(text.read_text().upper())
    with pytest.raises(ValueError, match="the corpus has changed since"):
        train(small_run(tmp_path / "run"))


def test_it_refuses_to_train_through_nan(tmp_path):
    config = small_run(tmp_path / "run", optimizer=AdamWConfig(lr=1e30, grad_clip=None))
    config.callbacks.checkpoint.every_steps = 1
    with pytest.raises(Failure, match=r"step \d+ has loss (nan|inf).*Lower optimizer\.lr"):
        train(config)
    rows = step_rows(tmp_path / "run" / "metrics.csv")
    failed = rows[-1]["train/loss"], rows[-1]["train/grad_norm"]
    assert not all(map(math.isfinite, failed)), "the step that failed is on the record"
    path, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    if path is not None:
        assert all(t.isfinite().all() for t in checkpoint.load(path).model.values()), "what is saved is sound"


def test_text_shorter_than_a_sequence_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(ValueError, match=r"tokens and one sequence needs 17.*data\.context_length"):
        train(small_run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_more_devices_than_there_are(tmp_path):
    trainer = TrainerConfig(devices=4)
    if torch.cuda.is_available():
        trainer.devices = torch.cuda.device_count() + 1
    with pytest.raises(ValueError, match=r"trainer\.devices=\d+ asks for \d+ devices and this machine has"):
        train(small_run(tmp_path / "run", trainer=trainer))


def test_without_a_validation_split(tmp_path, capsys):
    config = small_run(tmp_path / "run")
    config.data = TextConfig(path=config.data.path, val_fraction=0.0)
    assert "val/loss" not in train(config).summary
    assert re.fullmatch(r"train/loss \d+\.\d{4} run \S+", capsys.readouterr().out.rstrip().splitlines()[-1])


def test_a_test_split_is_scored_once_at_the_end(tmp_path):
    config = small_run(tmp_path / "run")
    config.data = TextConfig(path=config.data.path, test_fraction=0.1)
    summary = train(config).summary
    assert 0 < summary["test/loss"] < 6 and summary["test/loss"] != summary["val/loss"]


def test_a_part_of_the_split_has_another_name(tmp_path):
    config = small_run(tmp_path / "run")
    config.trainer.limit_val_batches = 1
    summary = train(config).summary
    assert "val_part/loss" in summary and "val/loss" not in summary


def test_the_training_split_in_eval_mode(tmp_path):
    summary = train(small_run(tmp_path / "run", eval_train=True)).summary
    assert summary["train_eval/loss"] == pytest.approx(summary["train/loss"], rel=0.1)
    assert "train_eval/loss" in step_rows(tmp_path / "run" / "metrics.csv")[-1]


def test_callbacks_can_be_turned_off(tmp_path):
    off = CallbacksConfig(checkpoint=None, sample=None, plot=False)
    train(small_run(tmp_path / "run", callbacks=off))
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "samples.txt").exists()


def test_as_many_checkpoints_as_asked_for_are_kept(tmp_path):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=2, keep_last=3), sample=None, plot=False)
    train(small_run(tmp_path / "run", callbacks=settings))
    steps = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert steps == ["step_00000006.ckpt", "step_00000008.ckpt", "step_00000010.ckpt"]


def test_other_peoples_callbacks_find_their_metrics(tmp_path):
    from lightning.pytorch.callbacks import EarlyStopping

    config = small_run(tmp_path / "run", budget_steps=100, optimizer=AdamWConfig(lr=1e-9))
    summary = train(config, callbacks=[EarlyStopping("val/loss", patience=2, min_delta=0.1)]).summary
    assert summary["steps"] == 15 and summary["stopped_early"]


def test_samples_are_text_of_the_corpus_alphabet(tmp_path):
    config = small_run(tmp_path / "run")
    config.callbacks.sample = SampleConfig(prompt="the ", max_new_tokens=12)
    train(config)
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step") == 2
    assert "the " in (tmp_path / "run" / "samples.txt").read_text()


def test_a_run_killed_after_its_last_save_scores_the_trained_model(tmp_path):
    config = small_run(tmp_path / "run")
    config.data = TextConfig(path=config.data.path, test_fraction=0.1)
    first = train(config).summary
    (tmp_path / "run" / "summary.json").unlink()
    again = train(config).summary
    assert again["test/loss"] == first["test/loss"] and again["val/loss"] == first["val/loss"]


def test_checkpoints_that_cannot_be_read_are_kept_and_end_the_run(tmp_path):
    train(small_run(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    metrics = (tmp_path / "run" / "metrics.csv").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read"):
        train(small_run(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) == 3
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == metrics


def test_every_step_has_one_row_without_evaluations_and_when_ended_early(tmp_path):
    config = small_run(tmp_path / "none")
    config.trainer.limit_val_batches = 0
    train(config)
    assert [row["step"] for row in step_rows(tmp_path / "none" / "metrics.csv")] == list(range(1, 11))
    config = small_run(tmp_path / "early", budget_steps=1_000_000)
    config.trainer.max_time = "00:00:00:01"
    config.trainer.val_check_interval = 1_000_000
    for _ in range(2):  # the limit is one on each start
        train(config)
    rows = step_rows(tmp_path / "early" / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    evaluated = [row["step"] for row in rows if "val/loss" in row]
    assert len(evaluated) == 2 and evaluated[1] > evaluated[0] + 20


def test_what_is_refused_leaves_a_finished_run_as_it_was(tmp_path, monkeypatch):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    train(small_run(tmp_path / "run", callbacks=settings))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    middle = tmp_path / "run" / "checkpoints" / "step_00000005.ckpt"
    with pytest.raises(ValueError, match="another model or batch"):
        train(small_run(tmp_path / "run", callbacks=settings, resume=str(middle), batch_tokens=256))

    def refuse(*_, **__):
        raise ValueError("refused by Lightning")

    monkeypatch.setattr("gptlab.training.loop._trainer", refuse)
    with pytest.raises(ValueError, match="refused by Lightning"):
        train(small_run(tmp_path / "run", callbacks=settings, resume=str(middle)))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"} == before


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    config = small_run(tmp_path / "run", budget_steps=12, optimizer=AdamWConfig(lr=1e-2))
    config.callbacks.checkpoint = CheckpointConfig(every_steps=12)
    config.trainer.val_check_interval = 3
    train(config)
    losses = {r["step"]: r["val/loss"] for r in step_rows(tmp_path / "run" / "metrics.csv") if "val/loss" in r}
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best.state.step == min(losses, key=losses.get) and best.state.best["val/loss"] == min(losses.values())


def test_gradients_are_measured_and_clipped_without_the_loss_scale(tmp_path, monkeypatch):
    """16-mixed on a CPU stands in for a GPU: the scale of 65,536 must show in neither the norm nor the update."""
    import lightning
    from lightning.pytorch.plugins.precision import MixedPrecision

    train(small_run(tmp_path / "whole"))

    class Scaled(lightning.Trainer):
        def __init__(self, **options):
            scaler = torch.amp.GradScaler("cpu")
            options["precision"] = None
            super().__init__(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **options)

    monkeypatch.setattr(lightning, "Trainer", Scaled)
    train(small_run(tmp_path / "half"))
    whole, half = (step_rows(tmp_path / name / "metrics.csv") for name in ("whole", "half"))
    for a, b in zip(whole, half, strict=True):
        assert b["train/grad_norm"] == pytest.approx(a["train/grad_norm"], rel=0.05)
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=0.01)


def test_loggers_get_the_rows(tmp_path):
    from gptlab.training.config import LoggersConfig, TensorboardConfig, WandbConfig

    config = small_run(tmp_path / "run", logger=LoggersConfig(wandb=WandbConfig(), tensorboard=TensorboardConfig()))
    train(config)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    first = (tmp_path / "run" / "wandb_id").read_text()
    (tmp_path / "run" / "summary.json").unlink()
    train(config)
    assert (tmp_path / "run" / "wandb_id").read_text() == first
    train(small_run(tmp_path / "other", logger=LoggersConfig(wandb=WandbConfig())))
    files = [list((tmp_path / run / "wandb").glob("offline-run-*/run-*.wandb")) for run in ("run", "other")]
    assert len(files[0]) == 1 and len(files[1]) == 1, "each training has a run of its own"


def test_no_bits_per_byte_of_a_text_that_the_tokenizer_does_not_give_back(tmp_path, capsys):
    from gptlab.data.tokenizers.config import WordPieceConfig

    config = small_run(tmp_path / "run", tokenizer=WordPieceConfig(vocab_size=60))
    summary = train(config).summary
    assert "val/loss" in summary and "val/bits_per_byte" not in summary
    assert "val/bits_per_byte" not in step_rows(tmp_path / "run" / "metrics.csv")[-1]
    captured = capsys.readouterr()
    assert captured.err.count("warning: no bits per byte: the tokenizer does not give the text back") == 1
    assert "val/bits_per_byte" not in captured.out


def test_a_default_precision_is_continued_by_its_name_alone(tmp_path):
    """As on another device, whose default is another: what the refusal says to type has to be taken."""

    def config(precision):
        trainer = TrainerConfig(accelerator="cpu", devices=1, precision=precision, enable_progress_bar=False)
        return small_run(tmp_path / "run", trainer=trainer)

    train(config(None), until_step=5)
    with pytest.raises(UserError, match=r"trainer\.precision was None and is bf16-mixed"):
        train(config("bf16-mixed"))
    assert train(config("32-true")).summary["steps"] == 10
    assert len(step_rows(tmp_path / "run" / "metrics.csv")) == 10
    assert train(config(None)).summary["steps"] == 10, "finished, by the command that began it"
    with pytest.raises(UserError, match=r"trainer\.precision was 32-true and is bf16-mixed"):
        train(config("bf16-mixed"))


@pytest.mark.parametrize(("given", "expected"), [(None, 0.85 * 10**9), (0.25, 2**28)])
def test_a_budget_of_memory_is_the_configs_or_most_of_what_is_free(tmp_path, monkeypatch, given, expected):
    class Planned(Exception):
        pass

    def make_plan(*_, budget_bytes):
        raise Planned(budget_bytes)

    monkeypatch.setattr(loop, "make_plan", make_plan)
    monkeypatch.setattr(loop, "free_memory_bytes", lambda *_: 10**9)
    budget = StrategyConfig(activation_checkpointing=Recompute.budget, memory_budget_gib=given)
    for strategy, wanted in ((budget, expected), (StrategyConfig(), None)):
        with pytest.raises(Planned) as planned:
            train(small_run(tmp_path / "run", strategy=strategy))
        assert planned.value.args == (wanted,)
