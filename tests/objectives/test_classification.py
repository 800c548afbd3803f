"""Classification: L3 by explicit maths, a planted signal that has to be found, and labels that are refused."""

import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import small_run, step_rows

from gptlab.data.config import Overlong
from gptlab.data.examples.example_table import TokenizedExample
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import TableConfig
from gptlab.data.tokenizers.config import ByteConfig, CharConfig, WordPieceConfig
from gptlab.errors import UserError
from gptlab.models.build import init_weights, shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.objectives.base import logged_means
from gptlab.objectives.config import ClassificationConfig
from gptlab.training.config import AdamWConfig, CosineConfig
from gptlab.training.loop import train

BYTES = ByteConfig(special_tokens=["<cls>", "<sep>", "<pad>"])
TOKENIZER = BYTES.build(lambda: iter(()))
SIZES = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 24}


def examples():
    texts = [np.array([5, 6, 7, 8]), np.array([9, 10]), np.array([11, 12, 13, 14, 15])]
    return [
        TokenizedExample(np.append(text, TOKENIZER.eot), np.ones(len(text) + 1, bool), i % 2)
        for i, text in enumerate(texts)
    ]


def objective_of(model, tokenizer=TOKENIZER, **options):
    data = TableConfig(path="x", label_column="kind", class_names=["a", "b"])
    length = model.context_length
    config = ClassificationConfig(**options)
    return config.build(tokenizer=tokenizer, model=model, data=data, context_length=length, seed=0)


def built(model, **options):
    objective = objective_of(model, **options)
    network = shape_model(model, TOKENIZER.vocab_size, 2).to_empty(device="cpu")
    init_weights(network, 0)
    return objective, network, objective.collate(examples(), np.arange(3))


def test_l3_is_l2_and_lambda_times_l1():
    """Equations 3 to 5 of GPT's paper, text by text, without padding."""
    objective, model, batch = built(DecoderConfig(**SIZES, init_std=0.3), lm_weight=0.5)
    l1, l2, right = [], [], 0
    for example in examples():
        tokens = torch.from_numpy(example.tokens)[None]
        hidden = model.hidden_states(tokens)
        scores = model.class_head(hidden[:, -1])
        l2.append(F.cross_entropy(scores, torch.tensor([example.label])))
        right += int(scores.argmax() == example.label)
        l1 += F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="none").tolist()
    means = logged_means(objective.loss(model, batch), {kind: 1 / n for kind, n in objective.counts(batch).items()})
    l2 = torch.stack(l2).mean().item()
    assert list(means) == ["loss", "label_loss", "lm_loss", "accuracy"]
    assert means["label_loss"].item() == pytest.approx(l2, rel=1e-5)
    assert means["lm_loss"].item() == pytest.approx(np.mean(l1), rel=1e-5)
    assert means["loss"].item() == pytest.approx(l2 + 0.5 * np.mean(l1), rel=1e-5)
    assert means["accuracy"].item() == pytest.approx(right / 3)
    assert objective.mean_loss(model, batch).item() == pytest.approx(l2 + 0.5 * np.mean(l1), rel=1e-5)


def test_a_pooler_reads_each_text_between_its_special_tokens_and_nothing_else():
    model = EncoderConfig(**SIZES, heads=Heads.none, init_std=0.3)
    objective, network, batch = built(model)
    network.eval()
    losses = []
    for i, example in enumerate(examples()):
        text = [TOKENIZER.cls, *example.tokens.tolist(), TOKENIZER.sep]
        assert batch["tokens"][i].tolist() == text + [TOKENIZER.pad] * (8 - len(text))
        scores = network.class_head(network.pooled(network.hidden_states(torch.tensor([text]))))
        losses.append(F.cross_entropy(scores, torch.tensor([example.label])).item())
    assert objective.mean_loss(network, batch).item() == pytest.approx(np.mean(losses), rel=1e-5)


def plant(path, n=1200):
    """Words at random, one of which is `up` or `down`: that is what the label says."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for _ in range(n):
            words = draw.choices("the of and a to in is".split(), k=4)
            kind = draw.choice(["rising", "falling"])
            words.insert(draw.randrange(5), "up" if kind == "rising" else "down")
            file.write(json.dumps({"text": " ".join(words), "kind": kind}) + "\n")
    return path


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_a_planted_signal_is_found(tmp_path, architecture):
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 32}
    model = DecoderConfig(**sizes) if architecture == "decoder" else EncoderConfig(**sizes, heads=Heads.none)
    config = small_run(
        tmp_path / "run",
        model=model,
        objective=ClassificationConfig(lm_weight=0.5 if architecture == "decoder" else 0.0),
        data=TableConfig(
            path=str(plant(tmp_path / "planted.jsonl")),
            label_column="kind",
            class_names=["rising", "falling"],
            val_fraction=0.2,
        ),
        tokenizer=BYTES,
        optimizer=AdamWConfig(lr=3e-3),
        schedule=CosineConfig(warmup_steps=20),
        batch_tokens=1024,
        budget_steps=150,
    )
    config.callbacks.checkpoint = None
    config.trainer.val_check_interval = 150
    summary = train(config).summary
    assert summary["val/accuracy"] >= 0.95, summary["val/accuracy"]


def test_special_tokens_of_the_tokenizer_are_not_added_twice(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = ({"text": " ".join("ab"[j % 2] for j in range(i % 22 + 1)), "kind": "ab"[i % 2]} for i in range(44))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_run(
        tmp_path / "run",
        model=EncoderConfig(**SIZES),
        objective=ClassificationConfig(),
        data=TableConfig(path=str(path), label_column="kind", class_names=["a", "b"], val_fraction=0.0),
        tokenizer=WordPieceConfig(vocab_size=9),
    )
    data = prepare(config.data, config.tokenizer, progress=False)
    objective = objective_of(config.model, data.tokenizer)
    objective.data.overlong = config.data.overlong
    table = objective.examples(data, "train", evaluating=False)
    assert len(table) == 44 and table.lengths.max() == SIZES["context_length"]
    batch = objective.collate(table.gather(np.arange(44)), np.arange(44))
    assert batch["tokens"].shape == (44, SIZES["context_length"])
    cls, sep = data.tokenizer.cls, data.tokenizer.sep
    for tokens, n in zip(batch["tokens"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True):
        assert tokens[0] == cls and tokens.index(sep) == n - 1 and tokens.count(cls) == 1


def test_texts_without_a_token_to_predict_train_on_their_labels(tmp_path):
    """One character and no end of text: nothing follows anything, so only labels are learned."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "ab"[i % 2], "kind": "ab"[i % 2]}) + "\n" for i in range(40)))
    data = TableConfig(path=str(path), label_column="kind", class_names=["a", "b"])
    runs = {}
    for lm_weight in (0.0, 0.5):
        objective = ClassificationConfig(lm_weight=lm_weight)
        run = tmp_path / f"run{lm_weight}"
        train(small_run(run, objective=objective, data=data, tokenizer=CharConfig()))
        runs[lm_weight] = step_rows(run / "metrics.csv")[-1]
    assert runs[0.5]["train/lm_loss"] == 0 and math.isnan(runs[0.5]["val/lm_loss"])
    assert runs[0.5]["train/label_loss"] == pytest.approx(runs[0.0]["train/loss"], rel=1e-6)
    assert runs[0.5]["val/label_loss"] == pytest.approx(runs[0.0]["val/loss"], rel=1e-6)


def test_labels_outside_the_classes_and_texts_too_long_are_refused(tmp_path):
    config = small_run(
        tmp_path / "run",
        objective=ClassificationConfig(),
        data=TableConfig(
            path=str(plant(tmp_path / "planted.jsonl", 40)), label_column="kind", class_names=["rising", "level"]
        ),
    )
    with pytest.raises(UserError, match=r"falling.*rising, level"):
        prepare(config.data, config.tokenizer, progress=False)
    config.data.class_names = ["rising", "falling"]
    with pytest.raises(UserError, match=r"data\.overlong=drop"):
        train(config)
    config.data.overlong = Overlong.truncate
    assert train(config).summary["finished"]
