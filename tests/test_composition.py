"""Overrides and YAML in, a checked `RunConfig` out; the command line is in tests/cli/test_train.py."""

import math
from pathlib import Path

import pytest
import yaml
from small_runs import write_text

from gptlab import UserError, compose, open_run
from gptlab.config import to_plain
from gptlab.data.prepare import prepare


# overrides -> what the message must say
def test_the_users_line():
    config = compose("model=gpt124m", "trainer.devices=8", "strategy=fsdp")
    assert (config.model.n_layer, config.model.vocab_size, config.trainer.devices) == (12, 50_257, 8)
    assert config.strategy.type.value == "fsdp"
    assert config.tokenizer.type == "bpe"  # the data chose one that needs no network
    assert config.folder().startswith("runs/gpt124m-stdlib-")
    assert (config.optimizer.type, config.optimizer.lr, config.schedule.type) == ("adamw", 6e-4, "cosine")
    assert (config.batch_tokens, config.micro_batch_size, config.tokens_per_parameter) == (524_288, 8, 20)


def test_the_data_choose_the_tokenizer_and_the_command_line_overrides_it():
    assert compose("data=verdict").tokenizer.type == "gpt2"
    assert compose("data=verdict", "tokenizer=byte").tokenizer.type == "byte"
    assert compose("experiment=shakespeare_char_cpu").tokenizer.type == "char"
    assert compose("experiment=shakespeare_char_cpu", "tokenizer=byte").tokenizer.type == "byte"


def test_a_budget_on_the_command_line_replaces_the_presets():
    config = compose("budget_steps=7", "schedule.warmup_steps=3")
    assert (config.schedule.warmup_steps, config.schedule.warmup_fraction) == (3, None)
    assert (config.budget_steps, config.budget_tokens, config.tokens_per_parameter) == (7, None, None)


def test_the_model_chooses_its_recipe_and_recipe_replaces_it():
    own, other = compose("model=bert_laptop"), compose("model=bert_laptop", "recipe=gpt124m")
    assert (own.optimizer.type, other.optimizer.type, other.schedule.type) == ("muon", "adamw", "cosine")
    assert other.model == own.model and other.batch_tokens == 524_288
    assert (other.objective, other.tokenizer) == (own.objective, own.tokenizer), "these follow the model"
    changed = compose("recipe=gpt124m", "optimizer=muon", "schedule=constant", "optimizer.lr=0.1")
    assert (changed.optimizer.type, changed.optimizer.lr, changed.schedule.type) == ("muon", 0.1, "constant")
    assert compose("experiment=verdict").batch_tokens == 512, "an experiment replaces the recipe of its model"


def test_a_model_without_a_recipe_gets_the_default(tmp_path):
    folder = tmp_path / "presets of mine" / "model"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - /schema/model/decoder@model\nmodel:\n  n_layer: 3\n"
    (folder / "mine.yaml").write_text(text)
    config = compose("model=mine", config_dir=folder.parent)
    expected = compose("recipe=default")
    assert (config.model_tag, config.model.n_layer) == ("mine", 3)
    assert (config.optimizer, config.schedule, config.batch_tokens) == (
        expected.optimizer,
        expected.schedule,
        expected.batch_tokens,
    )
    with pytest.raises(UserError, match="did you mean mine"):
        compose("model=mine2", config_dir=folder.parent)


@pytest.mark.parametrize(("group", "advice"), [("recipe", "/optimizer: NAME"), ("model", "/schema/model/NAME@model")])
def test_a_preset_that_leaves_a_group_empty_is_refused(tmp_path, group, advice):
    (tmp_path / group).mkdir()
    (tmp_path / group / "empty.yaml").write_text("# @package _global_\nbatch_tokens: 4096\n")
    with pytest.raises(UserError) as error:
        compose(f"{group}=empty", config_dir=tmp_path)
    assert "=empty: the preset chooses no" in str(error.value) and advice in str(error.value)


def test_several_loggers_at_once():
    config = compose("logger=[wandb,tensorboard]", "logger.wandb.project=mine")
    assert config.logger.wandb.project == "mine" and config.logger.tensorboard is not None


def test_the_run_folder_depends_on_what_is_learned_alone():
    base = compose().run_id()
    for overrides in (
        ["trainer.devices=2", "trainer.accelerator=cpu"],
        ["strategy=fsdp"],
        ["logger=wandb"],
        ["name=x"],
        ["model_tag=x"],
        ["data_tag=x"],
        ["micro_batch_size=1"],
    ):
        assert compose(*overrides).run_id() == base
    for override in (
        "seed=1",
        "optimizer.lr=0.1",
        "model.n_layer=3",
        "data.val_fraction=0.2",
        "trainer.precision=bf16-mixed",
    ):
        assert compose(override).run_id() != base


def test_a_saved_config_reads_back(tmp_path):
    config = compose("experiment=verdict", "logger=wandb")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    again = open_run(tmp_path).config
    assert again == config and type(again.data) is type(config.data)


def test_templates_are_typed_as_they_are():
    prompt, answer, tool = "Q: {question}, it's\nA:", " {answer}", "<tool> {content}\n"
    table = ("data=table", "data.path=a.csv", "objective=instruction")
    data = compose(*table, f"data.prompt={prompt}", f"data.response={answer}").data
    assert (data.prompt, data.response) == (prompt, answer)
    data = compose(*table, "data.messages=turns", f"data.chat.tool={tool}").data
    assert data.chat["tool"] == tool and list(data.chat) == ["system", "user", "assistant", "tool"]
    tokenizer = compose("tokenizer=byte", 'tokenizer.special_tokens=["<mask>","<pad>"]').tokenizer
    assert tokenizer.special_tokens == ["<mask>", "<pad>"] and tokenizer.known_vocab_size == 259


def test_composing_leaves_the_process_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["notebook", "--weird"])
    monkeypatch.chdir(tmp_path)
    assert compose("seed=3").seed == 3 and compose().seed == 1337, "nothing is left over of the first"
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_epochs_are_converted_where_the_tokens_are_known(tmp_path):
    text = write_text(tmp_path / "a text.txt")
    overrides = ["data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}", "tokenizer=byte"]
    with pytest.raises(UserError, match=r"did you mean budget_tokens\? .* the plan says how many epochs a budget is$"):
        compose("epochs=2.5", *overrides)
    config = compose(*overrides)
    n_tokens = prepare(config.data, config.tokenizer, progress=False).train.n_tokens
    assert 17_000 < n_tokens < 20_000
    for key in ("epochs", "trainer.max_epochs"):
        with pytest.raises(UserError, match=rf"{key}.*budget_tokens={math.ceil(2.5 * n_tokens)}\?.*{n_tokens:,}$"):
            compose(f"{key}=2.5", *overrides)
    for override in ("epochs=ten", "epochs=", "epochs=-1", "trainer.max_epochs=ten"):  # no number of them
        with pytest.raises(UserError, match=r"did you mean budget_tokens\? .*N epochs are N times"):
            compose(override, *overrides)
    with pytest.raises(UserError, match=rf"budget_tokens={4 * n_tokens}\?.*{n_tokens:,}, each read 2 times by windows"):
        compose("epochs=2", *overrides, "model.context_length=64", "data.stride=32")
    for option in ("data.packing=best_fit", "data.max_sequences=9"):  # an epoch is not all tokens
        with pytest.raises(UserError, match=r"did you mean budget_tokens\? "):
            compose("epochs=2", *overrides, option)
    with pytest.raises(UserError, match="unknown config key sede"):
        compose("sede=1", "epochs=2", *overrides)
    with pytest.raises(UserError, match=r"did you mean budget_tokens\? "):  # another split has another number
        compose("epochs=2", *overrides, "data.val_fraction=0.3")
