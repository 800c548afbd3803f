"""Text as a person types it on a command line: quotes, lists and mappings of texts."""

import re
from typing import Any

QUOTES = ("'", '"')
OPENING, CLOSING = "([{", ")]}"
VALUES = ("true", "false", "null", "inf", "nan")  # that are not text where no quotes are


def quote(text: str) -> str:
    """The text in single quotes; a backslash means itself there, except before a quote or at the end."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text) + "'"


def unquote(text: str) -> str:
    """The reverse of `quote`, for both kinds of quotes; text that is not in quotes as a whole stays as it is."""
    if not is_quoted(text):
        return text
    return re.sub(rf"(\\+)({text[0]}|\Z)", lambda found: len(found[1]) // 2 * "\\" + found[2], text[1:-1])


def listed(texts: list[str]) -> str:
    """The reverse of `items`, with quotes where they are needed."""
    return f"[{','.join(text if items(f'[{text}]') == [text] else quote(text) for text in texts)}]"


def is_quoted(text: str) -> bool:
    """Whether the text begins with a quote and ends with the one that closes it."""
    return len(text) > 1 and text[0] in QUOTES and _closing_quote(text, 0) == len(text) - 1


def is_plain(text: str) -> bool:
    """Whether the text cannot be taken for anything but itself: no quotes, brackets, numbers, truth values or null."""
    return text.lower() not in VALUES and re.fullmatch(r"([A-Za-z_/]|\.(?!\d))[A-Za-z0-9_./-]*", text) is not None


def split(text: str, separator: str = ",") -> list[str]:
    """The parts between separators that stand outside of quotes and brackets, without blanks around them.

    A quote begins only where a part or a list does, so that an apostrophe is one. Of brackets that do not match none
    counts.
    """
    if not text.strip():
        return []
    found = _split(text, separator, brackets=True)
    return _split(text, separator, brackets=False) or [] if found is None else found


def _split(text: str, separator: str, *, brackets: bool) -> list[str] | None:
    """The parts; None where brackets count and do not match."""
    parts, nested, start, i = [], [], 0, 0
    begins = True  # a part, a list or what follows a colon
    while i < len(text):
        char = text[i]
        if begins and char in QUOTES and (end := _closing_quote(text, i)) is not None:
            i = end
        elif brackets and char in OPENING:
            nested.append(CLOSING[OPENING.index(char)])
        elif brackets and char in CLOSING:
            if not nested or nested.pop() != char:
                return None
        elif char == separator and not nested:
            parts.append(text[start:i].strip())
            start = i + 1
        begins = char in ",:" + OPENING or (begins and char.isspace())
        i += 1
    return None if nested else [*parts, text[start:].strip()]


def items(text: str) -> list[str] | None:
    """The texts of a list `[one,"two, too"]`; None where it is no list, or lacks a text between two commas."""
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        return None
    found = split(text[1:-1])
    return [unquote(item) for item in found] if all(found) else None


def entries(text: str) -> dict[str, str] | None:
    """The texts of a mapping `{key: one, other: "two, too"}`; None where it is no mapping."""
    if len(text) < 2 or text[0] != "{" or text[-1] != "}":
        return None
    found = {}
    for part in split(text[1:-1]):
        key, colon, value = part.partition(":")
        if not colon or not re.fullmatch(r"\w[\w -]*", key.strip()):
            return None
        found[key.strip()] = unquote(value.strip())
    return found


def _closing_quote(text: str, start: int) -> int | None:
    """Where the quote at `start` is closed; None where that is not the end of a part."""
    found = re.search(rf"(?<!\\)(?:\\\\)*{text[start]}", text[start + 1 :])  # not after a backslash that stands alone
    if found is None:
        return None
    end = start + found.end()
    return end if re.match(rf"\s*(\Z|[,{re.escape(CLOSING)}])", text[end + 1 :]) else None


def unescaped(value: Any) -> Any:
    """Text as it is typed on a command line, with \\n as a new line, \\t as a tab and \\\\ as a backslash.

    Of a list or tuple each item; other values stay as they are.
    """
    if isinstance(value, list | tuple):
        return type(value)(map(unescaped, value))
    if not isinstance(value, str):
        return value
    parts = value.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)
