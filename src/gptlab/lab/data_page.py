"""What is in the data for a person: a table for the screen, and a page."""

import time
from pathlib import Path

from gptlab.data.tokenizers.pieces import visible
from gptlab.lab import html
from gptlab.lab.data_look import DataLook, Lengths, SourceLook, shown_text
from gptlab.units import bytes_text, grid, plural

N_FREQUENT = 8  # tokens on the screen
TEXT_COLUMNS = 60
PAGE_COLUMNS = 300
_EXACT_BYTES = 100_000_000


def summary(look: DataLook) -> list[tuple[str, str]]:
    """What was read and what it shows, as names and texts."""
    bytes_read = sum(source.n_bytes for source in look.sources)
    n_cut = sum(source.n_cut for source in look.sources)
    lines = []
    for source in look.sources:
        name = f"read of {source.name}" if source.name else "read"
        lines.append((name, f"{source.description}: {_read(source)}"))
    totals = [source.total_tokens for source in look.sources]
    lines += [
        ("documents", f"{look.n_documents:,}" + (f", {n_cut:,} of them in part" if n_cut else "")),
        ("tokens", f"{look.n_tokens:,} of tokenizer={look.tokenizer}" + _total(look, totals)),
        ("bytes per token", f"{bytes_read / max(1, look.n_tokens):.3f}"),
        ("length in tokens", lengths_text(look.lengths)),
    ]
    return [*lines, *sequences(look), *repetition(look), *vocabulary(look), *(("note", note) for note in look.notes)]


def _total(look: DataLook, totals: list[int | None]) -> str:
    if all(source.is_whole for source in look.sources):
        return ""
    if any(total is None for total in totals):
        return "; how many there are in all is not known"
    about = "about " if any(source.is_estimate for source in look.sources) else ""
    return f"; {about}{sum(total for total in totals if total is not None):,} in all"


def _read(source: SourceLook) -> str:
    size = f"{source.n_bytes:,} bytes" if source.n_bytes < _EXACT_BYTES else bytes_text(source.n_bytes)
    return f"{source.how}, {size}" if source.is_whole else f"a sample, {source.how}, {size}"


def lengths_text(lengths: Lengths) -> str:
    """The lengths of documents on one line."""
    return (
        f"{lengths.least:,} to {lengths.most:,}, median {lengths.median:,.0f}, mean {lengths.mean:,.1f}, 90% up to "
        f"{lengths.p90:,.0f}, 99% up to {lengths.p99:,.0f}"
    )


def sequences(look: DataLook) -> list[tuple[str, str]]:
    """How sequences cut documents."""
    cuts = look.cuts
    return [
        (
            "sequences",
            f"of {cuts.length:,} tokens: {cuts.documents_per_sequence:.2f} documents in each, several in "
            f"{cuts.share_with_several:.1%}",
        ),
        (
            "cut documents",
            f"{cuts.share_cut:.1%} are in more than one sequence; each is in {cuts.pieces_per_document:.2f} of them, "
            f"and half of the pieces have up to {cuts.median_piece:,.0f} tokens",
        ),
    ]


def repetition(look: DataLook) -> list[tuple[str, str]]:
    """Exact duplicates and n-grams that occur again."""
    return [
        (
            "duplicates",
            f"{plural(look.n_duplicates, 'document')} equal{'s' * (look.n_duplicates == 1)} an earlier one, "
            f"{look.share_duplicate:.1%} of the tokens",
        ),
        (
            f"repeated {look.n_gram}-grams",
            f"{look.share_repeated:.1%} of those of {look.n_gram} tokens occurred before",
        ),
    ]


def vocabulary(look: DataLook) -> list[tuple[str, str]]:
    """What of the vocabulary occurs, and what text it lacks."""
    lines = [("vocabulary", f"{look.n_used:,} of {look.vocab_size:,} tokens occur")]
    if look.n_unknown:
        lines.append(("unknown tokens", f"{look.n_unknown:,}, {look.n_unknown / max(1, look.n_tokens):.3%}"))
    if look.outside:
        listed = ", ".join(f"{shown_text(text, 12)} {count:,}" for text, count in look.outside[:N_FREQUENT])
        lines.append(("characters it lacks", f"{listed}{' ...' if len(look.outside) > N_FREQUENT else ''}"))
    if look.n_lossy:
        lines.append(("not given back", f"{plural(look.n_lossy, 'document')} by decoding, as in {look.lossy_example}"))
    if not (look.n_unknown or look.outside or look.n_lossy):
        lines.append(("unknown text", "none: every document is given back by decoding"))
    return lines


def as_text(look: DataLook, n_shown: int) -> str:
    """The short form for the screen."""
    pairs = summary(look)
    width = max(len(name) for name, _ in pairs)
    blocks = ["\n".join(f"{name:<{width}}  {text}" for name, text in pairs)]
    if len(look.sources) > 1:
        rows = [
            [
                source.name,
                f"{source.n_documents:,}",
                f"{source.n_tokens:,}",
                f"{source.bytes_per_token:.3f}",
                f"{source.lengths.median:,.0f}",
                "unknown"
                if source.total_tokens is None
                else f"{'about ' if source.is_estimate else ''}{source.total_tokens:,}",
                *([] if source.weights is None else [_weight(source.weights)]),
            ]
            for source in look.sources
        ]
        header = ["source", "documents", "tokens", "bytes per token", "median length", "tokens of all"]
        blocks.append(grid(header + (["share of a run"] if len(rows[0]) > len(header) else []), rows))
    tokens = [
        [f"{token:,}", f"{count:,}", f"{share:.2%}", shown_text(text, 24)]
        for token, text, count, share in look.frequent[:N_FREQUENT]
    ]
    lines = grid(["token", "count", "share"], [row[:3] for row in tokens], n_left=0).split("\n")
    shown = ["most frequent tokens", *(row[3] for row in tokens)]
    blocks.append("\n".join(f"{line}  {text}" for line, text in zip(lines, shown, strict=True)))
    documents = [
        f"{one.source + ': ' if one.source else ''}{one.name}, {plural(one.n_tokens, 'token')}: "
        f"{shown_text(one.text, TEXT_COLUMNS)}"
        for one in look.shown[:n_shown]
    ]
    blocks.append("\n".join(["documents at random", *documents]))
    return "\n\n".join(blocks)


def _weight(weights: tuple[float, float]) -> str:
    return f"{weights[0]:.2%}" if weights[0] == weights[1] else f"{weights[0]:.2%} to {weights[1]:.2%}"


def _shown(text: str) -> str:
    return shown_text(text, PAGE_COLUMNS)


def write_data_page(look: DataLook, path: Path, *, title: str) -> None:
    """Write the page, atomically."""
    data = {
        "title": title,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "summary": summary(look),
        "cuts": sequences(look),
        "tokens": vocabulary(look),
        "repeated": repetition(look),
        "look": look.plain()
        | {
            "frequent": [[token, visible(text), count, share] for token, text, count, share in look.frequent],
            "outside": [[visible(text), count] for text, count in look.outside],
            "repeated_documents": [{"count": one.count, "text": _shown(one.text)} for one in look.repeated_documents],
            "repeated_ngrams": [{"count": one.count, "text": _shown(one.text)} for one in look.repeated_ngrams],
        },
    }
    scripts = ["inspect/parts.js", "inspect/data.js"]
    text = html.document(
        title, '<div id="app"></div>', data=data, scripts=scripts, styles=["inspect/inspect.css"], charts=False
    )
    html.write_document(path, text)
