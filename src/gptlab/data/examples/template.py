"""Text with fields that a row of a table fills."""

import re
from collections.abc import Mapping
from typing import Any

from gptlab.errors import UserError

_BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")
_NAME = re.compile(r"[^\W\d][\w -]*")


class Template:
    """Text with fields as `{question}`; `{{` and `}}` stand for braces.

    A field is a plain name. Everything else that `str.format` knows is refused with a ValueError: attributes, indices,
    conversions and formats could read more of the program than a row. `word` is the setting that the text came from.
    `parts` is text, field, text, field and so on to the last text.
    """

    fields: tuple[str, ...]
    parts: tuple[str, ...]

    def __init__(self, text: str, word: str) -> None:
        self.text = text
        self.word = word
        parts = [""]
        end = 0
        for braces in _BRACES.finditer(text):
            parts[-1] += text[end : braces.start()]
            end = braces.end()
            match braces[0]:
                case "{{" | "}}":
                    parts[-1] += braces[0][0]
                case "{" | "}":
                    raise UserError(
                        f"{word}={text!r} has a single {braces[0]!r} at character {braces.start() + 1}; write a field "
                        f"as {{name}}, and a brace itself as {braces[0] * 2!r}"
                    )
                case field:
                    parts += [self._name(field), ""]
        parts[-1] += text[end:]
        self.parts = tuple(parts)
        self.fields = tuple(dict.fromkeys(parts[1::2]))

    def _name(self, field: str) -> str:
        if not _NAME.fullmatch(field[1:-1]):
            raise UserError(
                f"{self.word}={self.text!r} has the field {field}; a field is the plain name of a column, such as "
                "{text}, without . [ ] ! or :, and a brace itself is written twice"
            )
        return field[1:-1]

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The text with the row's values in the place of its fields.

        `where` names the row in errors, as "row 3 of FILE" does. A field that the row lacks is a ValueError, and so is
        a value other than text, a number, true or false.
        """
        parts = list(self.parts)
        parts[1::2] = [self._value(name, row, where) for name in parts[1::2]]
        return "".join(parts)

    def _value(self, name: str, row: Mapping[str, Any], where: str) -> str:
        if name not in row:
            there = ", ".join(sorted(map(str, row))) or "no columns"
            raise UserError(f"{self.word} names the field {{{name}}}, which {where} lacks; it has {there}")
        value = row[name]
        if value is None:
            raise UserError(
                f"{self.word} names the field {{{name}}}, which is null in {where}; give it a value or leave "
                "the row out"
            )
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{self.word} names the field {{{name}}}, which holds {type(value).__name__} in {where}; a template "
                "takes text, numbers, true and false"
            )
        return str(value)
