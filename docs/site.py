"""Hooks of mkdocs: pages from outside docs/, notebooks as pages, and links between all of them."""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# What a folder or file of the repository is on the site, where that is not docs/.
ALIASES = {"README.md": "index.md", "experiments": "experiments/README.md", "notebooks": "first_hour.md"}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the page of each experiment in the navigation."""
    pages = ["experiments/README.md", *sorted(map(_of_repository, ROOT.glob("experiments/*/README.md")))]
    assert config.nav is not None
    config.nav = [{"Experiments": pages} if entry == {"Experiments": []} else entry for entry in config.nav]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and pictures of experiments/, two pages of the root, and notebooks as pages and as files."""
    outside = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("experiments/**/*.md")]
    outside += [*ROOT.glob("experiments/**/*.png"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "notebooks" / "checks.py"]
    for path in outside:
        files.append(File.generated(config, _of_repository(path), abs_src_path=str(path)))
    for path in ROOT.glob("notebooks/*.ipynb"):
        name = path.with_suffix(".md").name
        files.append(File.generated(config, f"notebooks/{name}", content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages; a link to a file that the site has not is its text alone."""
    uri = page.file.src_uri
    outside = uri.startswith(("experiments/", "notebooks/")) or uri in ("CHANGELOG.md", "CONTRIBUTING.md")
    folder = posixpath.dirname(uri if outside else f"docs/{uri}")

    def replaced(match: re.Match) -> str:
        picture, text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        there = posixpath.normpath(posixpath.join(folder, path))
        there = ALIASES.get(there, there.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            return text
        return f"{picture}[{text}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{hash_}{anchor})"

    parts = CODE.split(markdown)  # within code nothing is a link
    return "".join(part if i % 2 else LINK.sub(replaced, part) for i, part in enumerate(parts))


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its code in fences, and solutions folded."""
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            if len(blocks) == 1:
                blocks.append(f"[Download this notebook]({path.name})")
            continue
        fence = f"```python\n{source}\n```"
        if "solution" in cell["metadata"].get("tags", []):
            lines = "\n".join(f"    {line}".rstrip() for line in fence.splitlines())
            fence = f'??? note "Solution"\n\n{lines}'
        blocks.append(fence)
    return "\n\n".join(blocks) + "\n"


def _of_repository(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
