"""docs/ and the texts of experiments/ against the code: keys, presets, commands and links."""

import pkgutil
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import gptlab
from gptlab import composition
from gptlab.cli.main import VERBS
from gptlab.config import NOT_IN_RUN_ID
from gptlab.overrides import key_types
from gptlab.registry import variants
from gptlab.training.config import OWNED

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def code_spans(page: str) -> set[str]:
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", text))


def shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_every_key_is_documented_and_no_other():
    documented = code_spans("configuration.md")
    keys = {key for key, _ in key_types() if not key.endswith(".type")}  # follows from the preset
    assert not (keys | set(NOT_IN_RUN_ID)) - documented
    groups = "|".join(sorted({key.split(".")[0] for key in keys if "." in key}))
    keys_in_page = {span for span in documented if re.fullmatch(rf"({groups})\.[a-z0-9_.]+", span)}
    assert not keys_in_page - set(dict(key_types())) - {f"trainer.{name}" for name in OWNED}


def test_every_preset_and_every_refused_trainer_option_is_documented():
    documented = code_spans("configuration.md")
    assert not {name for names in composition.preset_names().values() for name in names} - documented
    assert not {f"trainer.{name}" for name in OWNED} - documented


def test_every_source_and_tokenizer_is_documented():
    documented = code_spans("data.md")
    assert not {*variants("data"), *variants("tokenizer")} - documented


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text().splitlines()
    assert not {f"::: gptlab.{name}" for name in gptlab.__all__} - {*page}


def test_every_page_is_in_the_sites_navigation():
    listed = re.findall(r"^ +- (?:[\w-]+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert not {path.name for path in ROOT.glob("docs/*.md")} - {*listed}


def test_every_objective_is_documented():
    page = (ROOT / "docs" / "objectives.md").read_text()
    for name, config in variants("objective").items():
        (keys,) = re.findall(rf"^\| `{name}` \| (?:text|tables) .*\|(.*) \|$", page, re.MULTILINE)
        assert keys.strip(" `").split() == [f.name for f in fields(config) if f.name != "type"]
        assert f"\n## {name}\n" in page


@of_page
def test_commands_compose(page):
    for line in shell_lines(page):
        if "train.py" not in line and not line.startswith("gptlab train"):
            continue
        arguments = shlex.split(re.sub(r"^.*?(?=train\.py|gptlab train)", "", line), comments=True)
        overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "hydra"))]
        if "--config-dir" in arguments:
            continue  # a folder of the reader's own
        # Of a sweep the first value of each list.
        overrides = [re.sub(r"=([^,\[{]+),[^\[\]]*$", r"=\1", override) for override in overrides]
        composition.compose_plain(*overrides)  # raises UserError for a key or preset that does not exist


@of_page
def test_commands_name_verbs_that_exist(page):
    in_text = re.findall(r"`gptlab ([a-z-]+)\b", page.read_text())
    in_blocks = [line.split()[1] for line in shell_lines(page) if line.startswith("gptlab ")]
    assert not {*in_text, *in_blocks} - {*VERBS}


@of_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        # A plot is made by the experiment itself.
        if not target.startswith(("http", "#")) and not target.endswith("loss.png"):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} points at {target}"


@of_page
def test_anchors_exist(page):
    for target in re.findall(r"\]\(([^)\s]*#[^)]+)\)", page.read_text()):
        path, anchor = target.split("#")
        if path.startswith("http"):
            continue
        headings = re.findall(r"^#+ (.+)$", (page.parent / path if path else page).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{page.name} points at {target}"


# Files that a page names and the repository does not hold: to avoid, and OpenAI's.
NOT_HERE = {"utils.py", "download_model.py"}


@of_page
def test_files_and_modules_that_a_page_names_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = set(re.findall(r"`([^`\n]+)`", text))
    files = {
        path.relative_to(ROOT).as_posix()
        for top in ("src", "conf", "tests", "benchmarks", "docs", "notebooks")
        for path in (ROOT / top).rglob("*")
    }
    files |= {path.name for path in ROOT.iterdir()}
    named = {span for span in spans if re.fullmatch(r"[a-z0-9_/]+\.py", span)} - NOT_HERE
    named -= set(re.findall(r"^`(\S+)`:$", page.read_text(), re.MULTILINE))  # files that the page itself writes
    assert not {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)}
    keys = {key for key, _ in key_types() if "." in key}
    packages = {path.name for path in (ROOT / "src" / "gptlab").iterdir() if path.is_dir()}
    for span in spans:
        dotted = re.fullmatch(r"(?:gptlab\.)?(([a-z_]+)(?:\.\w+)*\.[A-Za-z_]\w*)", span)
        is_key = any(span == key or span.startswith(f"{key}.") for key in keys)
        if dotted and dotted[2] in packages and span not in named and not is_key:
            pkgutil.resolve_name(f"gptlab.{dotted[1]}")
