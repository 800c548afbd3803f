"""The card of an exported model, of runs as training and conversion leave them."""

import pytest
import yaml
from small_runs import small_run, write_run

from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.sources.config import TextConfig
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.model_card import AUTO_CLASSES, USES, model_card
from gptlab.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_run(tmp_path_factory.mktemp("some runs") / "my run")
    return config, train(config).summary


def card_of(folder, **more):
    return model_card(open_weights(str(folder), "from"), **{"n_parameters": 1000, "task": "text-generation"} | more)


def test_data_use_and_limits(run):
    config, summary = run
    card = card_of(config.run_dir)
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gptlab"]}
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        *("# my run", "## Data", "## Use", "## Limits", "## Results", "## Config")
    ]
    assert "1,000 parameters (decoder, 2 layers, d_model 32, context 16 tokens, byte tokenizer" in card
    assert "text.txt: 1 document, 20,000 bytes" in card and "1,280 tokens" in card and "10% for validation" in card
    assert "1.3 tokens per parameter" in card and "texts of up to 16 tokens" in card
    assert (
        f"| val/loss | {summary['val/loss']:.4f} |" in card and "AutoModelForCausalLM.from_pretrained(FOLDER)" in card
    )


def test_no_folder_of_this_machine_is_on_the_card(run, tmp_path):
    config, _ = run
    assert "/" not in config.run_dir.split("/")[-1] and str(tmp_path.parent) not in card_of(config.run_dir)
    shown = yaml.safe_load(card_of(config.run_dir).split("```yaml\n")[1].split("```")[0])
    assert shown["data"]["path"] == "text.txt" and shown["run_dir"] == "my run"


def test_a_model_that_needs_its_own_code_says_so(run):
    card = card_of(run[0].run_dir, own_code="modeling_some.py")
    assert "trust_remote_code=True" in card and "modeling_some.py is the model's code" in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["gptlab", "custom_code"]


def test_every_task_has_a_class_and_a_use(run):
    assert AUTO_CLASSES.keys() == USES.keys()
    for task, name in AUTO_CLASSES.items():
        assert f"import AutoTokenizer, {name}" in card_of(run[0].run_dir, task=task)


def test_what_is_not_known_is_not_claimed(tmp_path):
    write_run(tmp_path / "copied")
    (tmp_path / "copied" / "checkpoints" / "best.ckpt").rename(tmp_path / "model.ckpt")
    (tmp_path / "copied" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "summary.json").write_text('{"corpus": "of another run"}')
    card = card_of(tmp_path / "model.ckpt")
    assert "# model\n" in card and "of another run" not in card and "## Results" not in card


def test_the_sources_of_a_mixture(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"a text of {name} " * 200)
    sources = {"a": TextConfig(path=str(tmp_path / "a.txt")), "b": TextConfig(path=str(tmp_path / "b.txt"))}
    data = MixtureConfig(sources=sources, weights={"a": 0.25}, val_fraction=0.2)
    config = small_run(tmp_path / "run", data=data, budget_steps=2)
    train(config)
    card = card_of(config.run_dir)
    assert "a: a.txt: 1 document" in card and "b: b.txt: 1 document" in card and str(tmp_path) not in card
    assert "Shares: a 25.00%, b 75.00%." in card and "20% for validation" in card
