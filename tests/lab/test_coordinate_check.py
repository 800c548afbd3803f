"""Activations over widths and depths: flat where the parametrization is right, and found where it is not."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from gptlab.data.sources.config import TextConfig
from gptlab.errors import UserError
from gptlab.lab import coordinate_check as lab
from gptlab.lab.coordinate_page import as_text, draw, verdict, write_coordinate_page
from gptlab.models.build import build_model
from gptlab.models.config import Parametrization
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.causal_lm import CausalLM
from gptlab.training.config import AdamWConfig

VOCAB_SIZE, LENGTH = 16, 16
MUP = DecoderConfig(
    n_layer=1,
    n_head=2,
    d_model=16,
    context_length=LENGTH,
    init_std=0.1,
    parametrization=Parametrization.mup,
    base_d_model=16,
    base_d_head=8,
)
STANDARD = replace(MUP, parametrization=Parametrization.standard, base_d_model=None, base_d_head=None)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 3, (4, LENGTH + 1), generator=generator)  # of which a model can learn something
    tokens = steps.cumsum(1) % VOCAB_SIZE
    return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def check(copies, dimension="width", **options):
    options = {"optimizer": AdamWConfig(lr=3e-3), "batches": [batch(0), batch(1)], "probe": batch(9)} | options
    return lab.check_coordinates(
        copies,
        dimension,
        vocab_size=VOCAB_SIZE,
        objective=CausalLM(data=TextConfig(path="."), context_length=LENGTH),
        seed=0,
        **options,
    )


@pytest.fixture(scope="module")
def checks():
    return {
        config.parametrization.value: check({width: lab.of_width(config, width) for width in (32, 128, 512)})
        for config in (MUP, STANDARD)
    }


def test_mup_is_flat_over_16_times_the_width(checks):
    found = checks["mup"]
    assert found.passed, [(d.line.name, d.factor) for d in found.drifts()[:3]]
    assert "keeps activations at their size over widths 32 to 512" in verdict(found, "mup")


def test_standard_is_refused_by_name(checks):
    found = checks["standard"]
    assert not found.passed and found.drifts()[0].factor > 10
    told = verdict(found, "standard")
    assert told.startswith("model.parametrization=standard is not right") and "block 0" in told


def test_what_is_measured(checks):
    """By hand, on a model of its own."""
    model = build_model(lab.of_width(MUP, 32), VOCAB_SIZE, seed=0).eval()
    with torch.no_grad():
        states = model.hidden_states(batch(9)["tokens"])
    lines = {(line.layer, line.change): line for line in checks["mup"].lines}
    assert lines["hidden states", False].values[0][0] == pytest.approx(states.square().mean().sqrt().item(), rel=1e-5)
    logits = model.head.logits(states)
    assert lines["logits", False].values[0][0] == pytest.approx(logits.square().mean().sqrt().item(), rel=1e-5)
    assert not lines["logits", False].judged and lines[lab.LEARNED, True].judged
    # The first update moves each embedding that was read by the learning rate.
    assert lines["embedding", True].values[1][0] == pytest.approx(3e-3, rel=0.02)
    assert lines["embedding", True].values[0] == (0.0, 0.0, 0.0)


def test_completep_is_flat_over_16_times_the_depth_and_standard_is_not():
    base = replace(MUP, parametrization=Parametrization.completep, base_n_layer=2)
    copies = {depth: lab.of_depth(base, depth) for depth in (2, 8, 32)}
    found = check(copies, "depth")
    assert found.passed, [(d.line.name, d.factor) for d in found.drifts()[:3]]
    assert {line.layer for line in found.lines} >= {"the middle block", "the last block"}
    standard = check({depth: lab.of_depth(STANDARD, depth) for depth in (2, 8, 32)}, "depth")
    assert not standard.passed


def test_drift_is_the_slope_of_the_logarithms():
    line = lab.Line("x", False, True, ((3.0, 6.0, 12.0), (1.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (0.0, 0.0, 0.0)))
    assert [line.drift((1, 4, 16), step) for step in (0, 1, 3)] == pytest.approx([4.0, 1.0, 1.0])
    assert line.drift((1, 4, 16), 2) == float("inf")
    found = lab.CoordinateCheck("width", (1, 4, 16), [line])
    assert "without a number" in verdict(found, "mup") and "without a number!" in as_text(found)


def test_widths_of_models():
    assert lab.usual_widths(MUP) == [32, 64, 128, 256, 512]
    wide_heads = lab.of_width(MUP, 64)
    assert (wide_heads.n_head, wide_heads.head_width) == (2, 32)
    more = replace(MUP, d_model=64, n_head=8, n_kv_head=4)
    assert lab.grows_by_heads(more) and lab.usual_widths(more)[0] == 32
    assert (lab.of_width(more, 32).n_head, lab.of_width(more, 32).n_kv_head) == (4, 2)
    with pytest.raises(UserError, match=r"widths=40: .* use multiples of 16"):
        lab.of_width(more, 40)
    with pytest.raises(UserError, match=r"widths=33: model\.d_model=33 is not divisible"):
        lab.of_width(MUP, 33)


def test_layers_are_those_with_matrices():
    model = build_model(MUP, VOCAB_SIZE, seed=0)
    assert list(lab.layers_of(model)) == ["embedding", "block 0, attn", "block 0, ffn", "block 0"]
    assert isinstance(lab.layers_of(model)["embedding"], nn.Embedding)


def test_pages(checks, tmp_path):
    page, folder = tmp_path / "a page.html", tmp_path / "charts of it"
    write_coordinate_page([checks["standard"]], page, title="Coordinate check: standard, adamw")
    text = page.read_text()
    assert text.count("<svg viewBox") == len(checks["standard"].lines) and 'class="bad"' in text
    assert not re.search(r"(src|href)=\"http", text) and "model.parametrization=standard is not right" in text
    file = draw(checks["standard"], folder, title="x")
    assert file.name == "coordinate_check_width.png" and file.read_bytes()[:4] == b"\x89PNG"
