"""What a tokenizer makes of a text, piece by piece."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from gptlab.data.tokenizers.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = (
    8  # a piece is decoded after so many before it: some tokenizers spell a text's first token differently
)
_LONGEST_GROUP = 16  # tokens that make one character, and what else they hold
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and the text that it stands for.

    Where a character is spread over several tokens each of them has the text of all, and says which part it is.
    """

    token: int
    text: str
    part: int = 1
    n_parts: int = 1

    def __str__(self) -> str:
        return visible(self.text) + ("" if self.n_parts == 1 else f" {self.part}/{self.n_parts}")


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text as tokens."""

    text: str
    pieces: list[Piece]
    decoded: str  # what the tokens are decoded to

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode("utf-8", "surrogatepass"))

    @property
    def is_lossless(self) -> bool:
        """Whether the tokens give the text back."""
        return self.decoded == self.text


def tokenize(tokenizer: Tokenizer, text: str) -> Tokenization:
    """The pieces of a text; UserError for one that the tokenizer cannot encode."""
    ids = tokenizer.encode(text).tolist()
    return Tokenization(text, pieces(tokenizer, ids, text), tokenizer.decode(ids))


def pieces(tokenizer: Tokenizer, ids: Iterable[int], text: str | None = None) -> list[Piece]:
    """The text that each of these ids stands for where they follow each other; special tokens are spelled.

    `text` is what they were encoded from, where it is known: a replacement character that it has is no unfinished one.
    """
    ids = [int(token) for token in ids]
    spelled = special_spellings(tokenizer)
    found: list[Piece] = []
    position = begin = first = 0  # in the text; of the group; of what is decoded with it
    while begin < len(ids):
        if ids[begin] in spelled:
            found.append(Piece(ids[begin], spelled[ids[begin]]))
            begin += 1
            continue
        first = max(first, begin - _CONTEXT_TOKENS)
        known = tokenizer.decode(ids[first:begin])
        end = begin + 1
        while True:
            decoded = tokenizer.decode(ids[first:end])
            piece = decoded[len(known) :]
            more = end < min(len(ids), begin + _LONGEST_GROUP) and ids[end] not in spelled
            if not more or not piece.endswith(_REPLACEMENT):
                break
            whole = text is not None and text.startswith(piece, position)
            if whole and len(tokenizer.decode(ids[first : end + 1])) > len(decoded):
                break
            end += 1
        n_parts = end - begin
        found += [Piece(token, piece, part, n_parts) for part, token in enumerate(ids[begin:end], 1)]
        position += len(piece)
        begin = end
    return found


def special_spellings(tokenizer: Tokenizer) -> dict[int, str]:
    """How each special token is shown, by its id."""
    spelled = {token_id: token for token, token_id in tokenizer.special_ids.items() if token_id in tokenizer.specials}
    for token_id in tokenizer.specials:
        spelled.setdefault(token_id, tokenizer.decode([token_id]) or f"<token {token_id}>")
    return spelled


def visible(text: str) -> str:
    """A text in quotes on one line: line ends, tabs, control characters and lone surrogates as escapes."""
    quote = "'" if '"' in text and "'" not in text else '"'
    shown = [
        f"\\{character}" if character == quote else _ESCAPES.get(character) or escaped(character) for character in text
    ]
    return f"{quote}{''.join(shown)}{quote}"


def escaped(character: str) -> str:
    """A character, or its escape where it would not be seen."""
    if character.isprintable() or character == _REPLACEMENT:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters and emoji take two, accents of their own none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
