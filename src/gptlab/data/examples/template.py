"""Text with fields that a record fills."""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from gptlab.data.sources.table_file import spelled
from gptlab.errors import UserError

_NAME = re.compile(r"[^\W\d][\w -]*")


class Template:
    """Text with fields such as `{question}`; `{{` and `}}` stand for braces.

    A field is a plain name. What else `str.format` allows is refused with a UserError: attributes, indices, conversions
    and formats could read more of the program than a record. `key` is the config key that the text came from. `parts`
    is text, field, text, field and so on to the last text.
    """

    fields: tuple[str, ...]
    parts: tuple[str, ...]

    def __init__(self, text: str, key: str) -> None:
        self.text = text
        self.key = key
        parts = [""]
        try:
            for literal, name, spec, conversion in Formatter().parse(text):
                parts[-1] += literal
                if name is not None:
                    if spec or conversion or not _NAME.fullmatch(name):
                        raise UserError(
                            f"{key}={text!r} has the field {{{name}}}; a field is the plain name of a column, such as "
                            "{text}, without . [ ] ! or :, and a brace itself is written twice"
                        )
                    parts += [name, ""]
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{key}={text!r}: {error}; write a field as {{name}}, and a brace itself as {{{{ or }}}}"
            ) from None
        self.parts = tuple(parts)
        self.fields = tuple(dict.fromkeys(parts[1::2]))

    def fill(self, record: Mapping[str, Any], where: str) -> str:
        """The text with the record's values for its fields.

        `where` names the record in errors, as "record 3 of FILE" does. UserError for a field that the record lacks, and
        for a value other than text, a number, true or false.
        """
        parts = list(self.parts)
        parts[1::2] = [self._value(name, record, where) for name in parts[1::2]]
        return "".join(parts)

    def _value(self, name: str, record: Mapping[str, Any], where: str) -> str:
        if name not in record:
            columns = ", ".join(sorted(map(str, record))) or "no columns"
            raise UserError(f"{self.key} has the field {{{name}}}, which {where} lacks; it has {columns}")
        value = record[name]
        if value is None:
            raise UserError(
                f"{self.key} has the field {{{name}}}, which is null in {where}; give it a value or "
                "leave the record out"
            )
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{self.key} has the field {{{name}}}, which holds {type(value).__name__} in {where}; a template takes "
                "text, numbers, true and false"
            )
        return spelled(value)
