"""Incremental detokenization, with stop texts."""

from collections.abc import Collection, Sequence

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 8


class TextStream:
    """The text of one sequence of tokens, in pieces that can be shown at once.

    A piece never ends within a character, nor within what may become a stop text. `finished` is why the text ended:
    "stop" or "end_of_text", None while it continues. `text` is all that was returned so far. `end_ids` are the tokens
    that end a text (None: the tokenizer's end-of-text token).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop: Sequence[str] = (),
        end_ids: Collection[int] | None = None,
    ):
        if not all(stop):
            raise UserError("stop has an empty text, which would end every sequence at once; leave it out")
        for text in stop:
            try:
                tokenizer.encode(text)
            except ValueError as error:
                raise UserError(f"stop={text!r} can never be generated: {error}") from None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._end_ids = (tokenizer.eot,) if end_ids is None else end_ids
        # Some tokenizers decode a text's first token differently from a later one: the end of the prompt goes first.
        self._ids = [int(token) for token in prompt[-_CONTEXT_TOKENS:]]
        self._shown = self._decoded = ""
        self._begin, self._end = 0, len(self._ids)  # of the tokens that are decoded already
        self.finished: str | None = None

    @property
    def text(self) -> str:
        return self._shown

    def feed(self, token: int) -> str:
        """Add the next token; returns the text that it completes, often none or several characters."""
        if token in self._end_ids:
            piece = self.close()  # may end at a stop text after all
            self.finished = self.finished or "end_of_text"
            return piece
        self._ids.append(token)
        self._decode()
        return self._show(final=False)

    def close(self) -> str:
        """The text that was held back, when no token follows."""
        if self.finished:
            return ""
        self._decode(final=True)
        return self._show(final=True)

    def _decode(self, final: bool = False) -> None:
        text = self._tokenizer.decode(self._ids[self._begin :])
        if text.endswith(_REPLACEMENT) and not final:
            return  # the next tokens may bring the rest of the character
        known = self._tokenizer.decode(self._ids[self._begin : self._end])
        self._decoded += text[len(known) :]
        self._begin, self._end = self._end, len(self._ids)

    def _show(self, final: bool) -> str:
        start = len(self._shown)
        found = [at for stop in self._stop if (at := self._decoded.find(stop, start)) >= 0]
        if found:
            self.finished = "stop"
            end = min(found)
        else:
            end = len(self._decoded) - (0 if final else self._held())
        piece = self._decoded[start:end]
        self._shown += piece
        return piece

    def _held(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._decoded) - len(self._shown)), 0, -1):
            if any(stop.startswith(self._decoded[-length:]) for stop in self._stop):
                return length
        return 0
