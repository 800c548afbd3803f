"""Jinja chat templates as Hugging Face has them, and which part of their text is the assistant's."""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptlab.errors import UserError

# How special tokens of chat templates are spelled: <|im_start|>, <\uff5cUser\uff5c>, <s>, <start_of_turn>, <bos>.
_SPECIAL = re.compile(r"<[|\uff5c][^<>\s|\uff5c]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos)>")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def read_chat_template(value: str) -> str:
    """The template that `data.chat_template` gives: its text, or a file with it (Jinja, or Hugging Face's JSON)."""
    if "{%" in value or "{{" in value:
        return value
    path = Path(value).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            text = json.loads(text)["chat_template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data.chat_template={value} cannot be read ({error!r}); give a Jinja template, a file with one, or a "
            "tokenizer_config.json that has a chat_template"
        ) from None
    if not isinstance(text, str):
        raise UserError(f"data.chat_template={value} holds several templates; give one of them in a file of its own")
    return text


class Part(NamedTuple):
    """A part of a conversation's text."""

    text: str
    scored: bool  # the assistant's
    special: bool  # a special token's spelling


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: puts marks around the assistant's text."""

    tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        begin, end = self.environment.globals["_marks"]
        return f"{begin}{caller()}{end}"


class ChatTemplate:
    """A conversation's text by a Jinja template, in a sandbox, split into what the assistant wrote and the rest.

    The assistant's parts are those between `{% generation %}` and `{% endgeneration %}`. In a template without these
    they are what each of the assistant's messages adds to the text of the messages before it, rendered with
    `add_generation_prompt=True`. `variables` are what the template knows, as `bos_token` and `eos_token`, and
    `special_tokens` those of the tokenizer, which are found in the template's own text and never in a message, but for
    the `plain_tokens` among them: added tokens such as <think> that are tokens of any text.
    `unknown_tokens` gathers what the template spells like a special token and the tokenizer lacks.
    """

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        special_tokens: Iterable[str] = (),
        plain_tokens: Iterable[str] = (),
    ) -> None:
        self._variables = dict(variables)
        self._special_tokens = sorted(filter(None, {*special_tokens, *self._variables.values()}), key=len, reverse=True)
        self.unknown_tokens: set[str] = set()
        self._marked = _GENERATION.search(text) is not None
        # No message can hold these by chance. The last one keeps a message's spelling of a special token apart.
        self._marks = tuple(f"\0{secrets.token_hex(16)}\0" for _ in range(2))
        self._apart = f"{secrets.randbits(128):039d}"  # digits, since a template may change the case
        known = [re.escape(token) for token in self._special_tokens]
        plain = set(plain_tokens)
        guarded = [re.escape(token) for token in self._special_tokens if token not in plain]
        self._guarded = re.compile("|".join([*guarded, _SPECIAL.pattern]))
        self._split = re.compile(f"({'|'.join(known)})") if known else None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, _marks=self._marks)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"data.chat_template, line {error.lineno}: {error.message}; fix the template") from None

    def parts(self, messages: Any, where: str) -> list["Part"]:
        """The text in parts; UserError calls the record `where`."""
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise UserError(f'{where} is not a list of messages such as {{"role": "user", "content": "..."}}')
        messages = self._guard(messages)
        found = self._by_marks(messages, where) if self._marked else self._by_difference(messages, where)
        if not any(assistant and text for text, assistant in found):
            raise UserError(f"{where} has no message of the assistant, so no target; leave it out")
        return [part for text, assistant in found for part in self._parts(text, assistant)]

    def _guard(self, value: Any) -> Any:
        """A message in which nothing spells a special token."""
        match value:
            case str():
                return self._guarded.sub(lambda found: f"{found[0][0]}{self._apart}{found[0][1:]}", value)
            case list():
                return [self._guard(one) for one in value]
            case dict():
                return {key: self._guard(one) for key, one in value.items()}
        return value

    def _parts(self, text: str, assistant: bool) -> Iterator["Part"]:
        for part in [text] if self._split is None else self._split.split(text):
            if part in self._special_tokens:
                yield Part(part, assistant, True)
            elif part:
                self.unknown_tokens.update(_SPECIAL.findall(part))
                yield Part(part.replace(self._apart, ""), assistant, False)

    def render(self, messages: list[dict[str, Any]], where: str, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, without marks."""
        text = self._render(messages, where, add_generation_prompt=add_generation_prompt)
        return text.replace(self._marks[0], "").replace(self._marks[1], "")

    def _render(self, messages: list[dict[str, Any]], where: str, *, add_generation_prompt: bool = False) -> str:
        try:
            return self._template.render(
                messages=messages, tools=None, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except Exception as error:  # a template may raise anything
            raise UserError(
                f"{where}: data.chat_template cannot render the conversation ({type(error).__name__}: {error}); "
                "leave the record out or fix the template"
            ) from None

    def _by_marks(self, messages: list[dict[str, Any]], where: str) -> list[tuple[str, bool]]:
        begin, end = self._marks
        before, *spans = self._render(messages, where).split(begin)
        parts = [(before, False)]
        for span in spans:
            inside, _, outside = span.partition(end)
            parts += [(inside, True), (outside, False)]
        return parts

    def _by_difference(self, messages: list[dict[str, Any]], where: str) -> list[tuple[str, bool]]:
        whole = self._render(messages, where)
        parts: list[tuple[str, bool]] = []
        done = 0
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            prompt = self._render(messages[:number], where, add_generation_prompt=True)
            answered = self._render(messages[: number + 1], where)
            if not (len(prompt) >= done and answered.startswith(prompt) and whole.startswith(answered)):
                raise UserError(
                    f"{where}, message {number + 1}: data.chat_template renders earlier messages differently when "
                    "others follow, so the assistant's part cannot be found by comparison; mark it in the template "
                    "with {% generation %} and {% endgeneration %}"
                )
            parts += [(whole[done : len(prompt)], False), (whole[len(prompt) : len(answered)], True)]
            done = len(answered)
        return [*parts, (whole[done:], False)]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own escapes what HTML would need.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
