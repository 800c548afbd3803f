"""The sampling part of the page: what its sliders show, in a real browser, against `generation.sampling`."""

import base64
import shutil

import numpy as np
import pytest
import torch
from small_runs import write_run

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.generation.sampling import Sampling
from gptlab.lab.inspection.page import write_inspection
from gptlab.lab.inspection.sampling import packed, sampling
from gptlab.lab.inspection.subject import Subject, open_subject
from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs.load import load_model

TEXT = "a cat sat on a mat"
COURSE = [1.5, -1.8, 0.9, -3.2]
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0},
    {"temperature": 0.01},
    {"temperature": 20},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.6, "temperature": 1.5, "top_k": 40},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    {"temperature": 2.5, "top_p": 0.95, "min_p": 0.3},
]


def of_page(part):
    return torch.from_numpy(np.frombuffer(base64.b64decode(part["logits"]), "<f4").copy())


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return open_subject(str(write_run(tmp_path_factory.mktemp("some runs") / "run")), prompt=TEXT)


def test_the_logits_are_the_models(subject):
    part = sampling(subject)
    model = load_model(subject.name).model.eval()
    expected = model(torch.tensor([list(TEXT.encode())]))[0, -1]
    torch.testing.assert_close(of_page(part), expected.float()[:257])
    assert part["seen"] == list(TEXT.encode()) and part["texts"][str(ord("q"))] == "q"


def test_other_models(subject):
    sizes = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 24}
    tokenizer, tokens = ByteTokenizer(), torch.tensor([[5, 6, 7]])
    encoder = build_model(EncoderConfig(**sizes), 257, seed=0).eval()
    assert sampling(Subject(name="", model=encoder, tokenizer=tokenizer, tokens=tokens)) is None
    model = build_model(EncoderDecoderConfig(**sizes), 260, seed=0).eval()
    read = Subject(name="", model=model, tokenizer=tokenizer, tokens=tokens, source=torch.tensor([[9, 8]]))
    expected = model(tokens, source=torch.tensor([[9, 8]]))[0]
    torch.testing.assert_close(of_page(sampling(read)), expected[-1, :257])  # ids that the tokenizer lacks are left out
    model.end_ids = frozenset({int(expected[-1, :257].argmax())})  # the text has ended: what it begins with
    found = sampling(read)
    torch.testing.assert_close(of_page(found), expected[0, :257])
    assert found["position"] == 0 and found["seen"] == [5]


@pytest.fixture(scope="module")
def page(subject, tmp_path_factory):
    """The page of a sampling part alone, open in a browser, and what the browser said and asked for."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    path = tmp_path_factory.mktemp("pages") / "a page.html"
    write_inspection(subject, path, title="run", found={"sampling": sampling(subject)})
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, said = browser.new_page(viewport={"width": 1280, "height": 900}), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert not said


def typed(page, settings):
    page.get_by_role("button", name="as the model has it").click()
    for name, value in settings.items():
        page.get_by_role("spinbutton", name=name, exact=True).fill(str(value))
    return page.evaluate(
        "(({ settings, after, mass, kept }) => ({ settings, after: [...after], mass, kept }))(DRAW.sampling.shown)"
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_browser_computes_what_generation_draws_from(page, subject, settings):
    found = typed(page, settings)
    part = sampling(subject)
    own, logits = Sampling(**settings), of_page(part)[None]
    expected = own.probabilities(logits, [part["seen"]])[0]
    torch.testing.assert_close(torch.tensor(found["after"], dtype=torch.float32), expected, rtol=1e-4, atol=1e-7)
    assert found["kept"] == int((expected > 0).sum()) or settings.get("temperature") == 0.01  # float32 has an end
    unfiltered = {name: settings[name] for name in ("temperature", "repetition_penalty") if name in settings}
    before = Sampling(**unfiltered).probabilities(logits, [part["seen"]])[0]
    assert found["mass"] == pytest.approx(before[expected > 0].sum().item(), rel=1e-4)
    shown = page.get_by_role("status").first.text_content()
    assert f"{found['kept']} of 257 tokens" in shown


def test_sliders_move_the_bars(page):
    typed(page, {})
    slider = page.get_by_role("slider", name="top_k, slider")
    slider.evaluate("one => { one.value = 0; one.dispatchEvent(new Event('input')); }")
    assert page.get_by_role("spinbutton", name="top_k", exact=True).input_value() == "1"
    assert page.evaluate("DRAW.sampling.shown.kept") == 1
    assert page.locator(".bar-row").filter(has_text="left out").count() == 20  # the others of the first, and the rest
    slider.evaluate("one => { one.value = 100; one.dispatchEvent(new Event('input')); }")
    assert page.evaluate("DRAW.sampling.shown.kept") == 257
    page.get_by_role("slider", name="temperature, slider").focus()
    page.keyboard.press("Home")
    assert page.evaluate("DRAW.sampling.shown.settings.temperature") == 0
    assert page.evaluate("DRAW.sampling.shown.kept") == 1
    page.get_by_role("spinbutton", name="top_p", exact=True).fill("2")  # refused: the value before stays
    assert page.get_by_role("spinbutton", name="top_p", exact=True).get_attribute("aria-invalid") == "true"
    assert page.evaluate("DRAW.sampling.shown.settings.top_p") is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.62704177, 0.02312729, 0.34412782, 0.00570312]),
        ({"temperature": 0.1}, [0.99753, 0.0, 0.00247, 0.0]),
        ({"top_k": 3}, [0.6306, 0.0233, 0.3461, 0.0]),
        ({"top_p": 0.8}, [0.6457, 0.0, 0.3543, 0.0]),
    ],
    ids=str,
)
def test_logits_of_ones_own(page, settings, expected):
    page.get_by_role("textbox", name="logits of your own").fill(", ".join(map(str, COURSE)))
    found = typed(page, settings)
    assert found["after"] == pytest.approx(expected, abs=5e-5 if settings else 1e-8)
    direct = Sampling(**settings).probabilities(torch.tensor([COURSE]))[0]
    assert direct.tolist() == pytest.approx(expected, abs=5e-5 if settings else 1e-7)
    page.get_by_role("textbox", name="logits of your own").fill("1, x")
    assert page.evaluate("DRAW.sampling.shown.after.length") == 4
    page.get_by_role("textbox", name="logits of your own").fill("")
    assert page.evaluate("DRAW.sampling.shown.after.length") == 257


def test_a_large_vocabulary_fits_the_page():
    assert len(packed(torch.zeros(50_257))) < 300_000
