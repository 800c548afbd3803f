"""Every YAML file composes, and every model among them can be built."""

import sys

import pytest

from gptlab import compose
from gptlab.costs import parameter_counts
from gptlab.models.build import shape_model

PRESETS = [(group, name) for group, names in compose.groups().items() for name in names]
COUNTS = {"gpt124m": 124_439_808, "gpt355m": 354_823_168, "gpt774m": 774_030_080, "gpt1558m": 1_557_611_200}


def composed(monkeypatch, *words):
    seen = []
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert compose.run(seen.append) == 0
    return seen[-1]


@pytest.mark.parametrize(("group", "name"), PRESETS, ids=[f"{g}={n}" for g, n in PRESETS])
def test_it_composes_and_builds(group, name, monkeypatch):
    config = composed(monkeypatch, f"{group}={name}")
    vocab_size = config.model.vocab_size or config.tokenizer.known_vocab_size or 100
    model = shape_model(config.model, vocab_size)
    n_parameters = sum(p.numel() for p in model.parameters())
    assert n_parameters == parameter_counts(config.model, vocab_size)["total"]
    if name in COUNTS:
        assert n_parameters == COUNTS[name]


def test_every_file_says_in_its_name_what_it_is(monkeypatch):
    for name in compose.groups()["model"]:
        assert composed(monkeypatch, f"model={name}").preset == name
    for name in compose.groups()["data"]:
        assert composed(monkeypatch, f"data={name}").corpus == name
    for name in compose.groups()["experiment"]:
        assert composed(monkeypatch, f"experiment={name}").preset == name


def test_the_books_model(monkeypatch):
    config = composed(monkeypatch, "experiment=verdict")
    assert parameter_counts(config.model, 50_257)["total"] == 162_419_712
    assert (config.optimizer.lr, config.optimizer.clip_norm, config.optimizer.decay.value) == (4e-4, None, "all")
