"""One self-contained HTML file: its head, styles, scripts, licenses, and the data that the scripts read.

Every page of gptlab is made here, so that all of them work from a disk without a network, in dark and light, and
escape what they show.
"""

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptlab.files import write_text_atomic

# Nothing is loaded and nothing is sent, whatever a script tries; the scripts and styles are those in the file.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
ICON = "data:image/svg+xml," + quote(
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<path d='M2 2v12h12' fill='none' stroke='gray'/><path d='M3 4c3 7 6 8 11 8' fill='none' stroke='#3987e5' "
    "stroke-width='2'/></svg>"
)  # or a browser would ask for favicon.ico


def asset(name: str) -> str:
    """The text of a file of `lab/assets`."""
    return (files("gptlab.lab") / "assets" / name).read_text(encoding="utf-8")


def document(
    title: str,
    body: str,
    *,
    data: Any = None,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    charts: bool = True,
) -> str:
    """An HTML document that needs no other file.

    `body` is HTML. `data` is what `scripts` read as the constant `DATA`: plain values, as JSON has them. `scripts` and
    `styles` are names of files in `lab/assets`; `base.js` and `base.css` come before them, and with `charts` the
    functions of `chart.js` and uPlot, whose license the page then carries.
    """
    library = ["uPlot.iife.min.js", "chart.js"] if charts else []
    css = "\n".join(asset(name) for name in (*(["uPlot.min.css"] if charts else []), "base.css", *styles))
    js = "\n".join(_no_end_tag(asset(name)) for name in ("base.js", *library, *scripts))
    licenses = f"\n<!--\nuPlot, which draws the charts of this page:\n\n{asset('uPlot.LICENSE')}-->" if charts else ""
    parts = {
        "policy": POLICY,
        "icon": ICON,
        "title": escape(title),
        "licenses": licenses,
        "css": css,
        "body": body,
        "data": embed_json(data),
        "js": js,
    }
    # In one pass, so that nothing within a part is taken for a place of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset("document.html"))


def write_document(path: str | Path, text: str) -> None:
    """Replace the file by a document, atomically; what UTF-8 cannot hold, as in a damaged file name, becomes `?`."""
    write_text_atomic(path, text.encode("utf-8", "replace").decode("utf-8"))


def escape(text: object) -> str:
    """Text as HTML shows it, within an element or an attribute."""
    return html.escape(str(text), quote=True)


def embed_json(data: Any) -> str:
    """Plain values as JSON for a `<script type="application/json">`, which no text within can end.

    Numbers that JSON lacks become text, as in `"NaN"`; what is no plain value is written as its text.
    """
    text = json.dumps(plain(data), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def plain(data: Any) -> Any:
    """Values as JSON has them."""
    if data is None or isinstance(data, bool | int | str):
        return data
    if isinstance(data, float):
        return data if math.isfinite(data) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(data, "NaN")
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [plain(item) for item in data]
    return str(data)


def link(target: Path, page: Path) -> str:
    """The address of a file or folder as a link of `page`: relative, so that both may be moved together."""
    target, page = Path(target).absolute(), Path(page).absolute()
    try:
        relative = Path(os.path.relpath(target, page.parent))
    except ValueError:  # another drive of Windows
        return target.as_uri()
    # A colon in the first part would be read as a scheme.
    return quote(f"./{relative.as_posix()}", safe="/!$&'()*+,;=@~-._", errors="surrogateescape")


def _no_end_tag(script: str) -> str:
    """A script without the text that would end its element."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)
