"""The page of a filtered corpus: what each filter let through, and random samples of what it removed."""

import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from gptlab.data.curation.corpus import CuratedCorpus
from gptlab.data.curation.curate import FilterCounts
from gptlab.data.curation.samples import Resembled, Sample, removed_samples
from gptlab.errors import UserError
from gptlab.fields import shown
from gptlab.lab import html
from gptlab.lab.html import escape
from gptlab.units import plural

PAGE = "curation.html"
N_SHOWN = 5
SHOWN_CHARACTERS = 2_000  # of a sample
_COMPARED_WORDS = 2_000  # of a pair
_CONTEXT = 12  # words, or lines, around a difference


def write_page(corpus: CuratedCorpus, path: str | Path, *, n_shown: int = N_SHOWN, seed: int = 0) -> Path:
    """Write the page of a filtered corpus, with `n_shown` samples of each filter; UserError where it cannot be."""
    path = Path(path)
    samples = removed_samples(corpus, n_shown, seed)
    body = _body(corpus, samples, seed)
    text = html.document(f"Filters of {corpus.description}", body, styles=["curation/curation.css"], charts=False)
    try:
        html.write_document(path, text)
    except OSError as error:
        raise UserError(f"html={path} cannot be written ({error.strerror or error}); name another file") from error
    return path


def share(part: int, whole: int) -> str:
    """A share in percent, with more digits where it is small."""
    if not part:
        return "0%"
    percent = 100 * part / whole
    return f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%"


def _body(corpus: CuratedCorpus, samples: Sequence[Sequence[Sample]], seed: int) -> str:
    counts = corpus.counts
    first, last = counts[0], counts[-1]
    totals = (
        ("documents", first.n_documents_in, last.n_documents_out),
        ("bytes", first.n_bytes_in, last.n_bytes_out),
    )
    cards = "".join(
        f'<div class="card"><b class="number">{after:,}</b>of {before:,} {what} stay ({share(after, before)})</div>'
        for what, before, after in totals
    )
    sections = "".join(
        _section(one, options, found) for one, options, found in zip(counts, _options(corpus), samples, strict=True)
    )
    return (
        f"<main><header><h1>Filters of {escape(corpus.description)}</h1>"
        f'<p class="soft">Documents pass the filters in this order, and each counts what comes to it. Samples are '
        f"drawn at random (seed {seed}). Content {escape(corpus.fingerprint[:16])}.</p></header>"
        f'<div class="total">{cards}</div>{_table(counts)}{sections}</main>'
    )


def _options(corpus: CuratedCorpus) -> list[dict[str, Any]]:
    """The options of each filter that are not the default, by name."""
    found = []
    for config in corpus.configs.values():
        plain = type(config)()
        names = [f.name for f in fields(config) if f.name != "type"]
        found.append({name: value for name in names if (value := getattr(config, name)) != getattr(plain, name)})
    return found


def _table(counts: Sequence[FilterCounts]) -> str:
    head = "".join(
        f"<th{number}>{name}</th>"
        for name, number in (
            ("filter", ""),
            *((name, ' class="number"') for name in ("documents in", "removed", "share", "bytes in", "bytes out")),
            ("by rule", ""),
        )
    )
    rows = []
    for one in counts:
        n = one.n_documents_in - one.n_documents_out
        width = 100 * n / max(1, one.n_documents_in)
        rules = ", ".join(f"{escape(rule)} {count:,}" for rule, count in sorted(one.rules.items(), key=lambda r: -r[1]))
        if one.n_rewritten:
            rules += f"{'; ' if rules else ''}{plural(one.n_rewritten, 'document')} shortened"
        rows.append(
            f'<tr><td><a href="#{escape(one.name)}">{escape(one.name)}</a>'
            f'<span class="share"><i style="width:{width:.2f}%"></i></span></td>'
            f'<td class="number">{one.n_documents_in:,}</td><td class="number">{n:,}</td>'
            f'<td class="number">{share(n, one.n_documents_in)}</td><td class="number">{one.n_bytes_in:,}</td>'
            f'<td class="number">{one.n_bytes_out:,}</td><td class="rules">{rules}</td></tr>'
        )
    return (
        f'<div class="card scroll" tabindex="0"><table class="counts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _section(one: FilterCounts, options: dict[str, Any], samples: Sequence[Sample]) -> str:
    n = one.n_documents_in - one.n_documents_out
    kind = "" if one.name == one.type else f" ({escape(one.type)})"
    chosen = ", ".join(f"{escape(name)}={escape(shown(value))}" for name, value in options.items())
    summary = f"{n:,} of {plural(one.n_documents_in, 'document')} removed" + (f"; {chosen}" if chosen else "")
    gone = [sample for sample in samples if sample.rewritten is None]
    changed = [sample for sample in samples if sample.rewritten is not None]
    parts = [f'<h2>{escape(one.name)}{kind}</h2><p class="soft">{summary}</p>', *map(_sample, gone)]
    if changed:
        n_changed = plural(one.n_rewritten, "document")
        parts.append(f'<p class="soft">{n_changed} shortened; <del>struck out</del> what was removed:</p>')
        parts += map(_sample, changed)
    return f'<section id="{escape(one.name)}">{"".join(parts)}</section>'


def _sample(sample: Sample) -> str:
    columns = ", ".join(f"{escape(name)}: {escape(value)}" for name, value in sample.fields.items() if value)
    about = f"<b>{escape(sample.name)}</b>" + (f' <span class="soft">{columns}</span>' if columns else "")
    other = sample.resembled
    if other is not None and other.text == sample.text:
        about += f"<br>as {escape(other.name)}"
        return f'<div class="card sample"><p>{about}</p><pre>{_beginning(sample.text)}</pre></div>'
    if other is not None:
        return f'<div class="card sample"><p>{about}</p>{_pair(sample, other)}</div>'
    if sample.rewritten is not None:
        return f'<div class="card sample"><p>{about}</p><pre>{_struck(sample.text, sample.rewritten)}</pre></div>'
    return (
        f'<div class="card sample"><p>{about}<br>{escape(sample.reason)}</p><pre>{_beginning(sample.text)}</pre></div>'
    )


def _beginning(text: str) -> str:
    left = len(text) - SHOWN_CHARACTERS
    more = f'\n<span class="omitted">[{left:,} more characters]</span>' if left > 0 else ""
    return escape(text[:SHOWN_CHARACTERS]) + more


def _pair(sample: Sample, other: Resembled) -> str:
    kept = "which stays" if other.is_kept else "a duplicate itself"
    one, two = _compared(other.text, sample.text)
    return (
        f'<div class="pair"><div><h4>{escape(other.name)}, {kept}</h4><pre>{one}</pre></div>'
        f"<div><h4>{escape(sample.name)}, removed: similarity {other.similarity:.3f}</h4><pre>{two}</pre></div></div>"
    )


def _compared(one: str, other: str) -> tuple[str, str]:
    """Two texts with the words marked that differ; long stretches that are alike are left out."""
    parts = [re.findall(r"\S+\s*|\s+", text)[:_COMPARED_WORDS] for text in (one, other)]
    found: tuple[list[str], list[str]] = ([], [])
    for kind, *places in SequenceMatcher(None, *parts, autojunk=False).get_opcodes():
        for side, (begin, end) in enumerate((places[:2], places[2:])):
            words = parts[side][begin:end]
            if kind == "equal":
                found[side].append(_shortened(words, "words alike"))
            elif words:
                found[side].append(f"<mark>{_shortened(words, 'words')}</mark>")
    rest = [text[sum(map(len, part)) :] for text, part in zip((one, other), parts, strict=True)]
    ends = [f'<span class="omitted">[{len(text):,} more characters]</span>' if text else "" for text in rest]
    return "".join(found[0]) + ends[0], "".join(found[1]) + ends[1]


def _struck(before: str, after: str) -> str:
    """A text with the lines struck out that are not in what is left of it."""
    parts = [text.splitlines() for text in (before[: 10 * SHOWN_CHARACTERS], after)]
    found = []
    for kind, begin, end, *_ in SequenceMatcher(None, *parts, autojunk=False).get_opcodes():
        lines = [f"{line}\n" for line in parts[0][begin:end]]
        if kind == "equal":
            found.append(_shortened(lines, "lines that stay"))
        elif lines:
            found.append(f"<del>{escape(''.join(lines))}</del>")
    return "".join(found).removesuffix("\n")


def _shortened(parts: Sequence[str], what: str) -> str:
    if len(parts) <= 3 * _CONTEXT:
        return escape("".join(parts))
    left = len(parts) - 2 * _CONTEXT
    begin, end = "".join(parts[:_CONTEXT]), "".join(parts[-_CONTEXT:])
    return f'{escape(begin)}<span class="omitted">[{left:,} {what}]</span> {escape(end)}'
