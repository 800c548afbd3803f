"""Where a text may be cut so that encoding the parts separately gives the ids of the whole.

GPT-2's split (Radford et al. 2019) can be cut between any two of its pieces. Within a piece, byte-pair encoding can be
cut between tokens u and v where encoding "uv" alone gives u and v. For until a merge joins two symbols across the cut,
each side is merged as it would be alone, and the first merge across would also happen in "uv". So tokens of which all
neighbors pass this test are the encoding of their text, however long it is: a window at a time is enough to find them.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

BLOCK_CHARACTERS = 1 << 18  # of a text, looked at together
LONG_CHARACTERS = 1 << 15  # without a cut between pieces, from which one within a piece is looked for
WINDOW_CHARACTERS = 1 << 12
_CONTEXT_CHARACTERS = 32  # on each side of a cut that is tested
_ATTEMPTS = 32
_SCANNED_CHARACTERS = 1 << 12


class Tokens(NamedTuple):
    """The ids of a text, and where in the text each ends; None inside a character."""

    ids: list[int]
    ends: list[int | None]


Cut = Callable[[str], int]
Encode = Callable[[str], Tokens]


def recut(texts: Iterable[str], cut: Cut, encode: Encode | None = None, classes: str = "") -> Iterator[str]:
    """One document's text in chunks that end where `cut` allows it.

    `cut` gives the last position in a text where encoding both sides separately gives the same ids, 0 where unknown.
    Where it finds none for long, a run of characters of one of `classes` (see `character_class`) is cut between two of
    its tokens; `encode` is that of a byte-pair encoding which allows it. Without `encode` such a run stays whole.
    """
    held, n_held = [], 0
    run: _Run | None = None
    for block in _blocks(texts):
        at = cut(block) if run is None else 0
        if at:
            yield "".join([*held, block[:at]])
            held, n_held = [block[at:]], len(block) - at
            continue
        held.append(block)
        n_held += len(block)
        if encode is not None and n_held >= LONG_CHARACTERS:
            text = "".join(held)
            run = run or _Run(cut, encode, classes)
            begin = 0
            for end in run.cuts(text, is_last=False):
                yield text[begin:end]
                begin = end
            held, n_held = [text[begin:]], len(text) - begin
            if run.is_over:
                run = None
    text = "".join(held)
    begin = 0
    if run is not None:
        for end in run.cuts(text, is_last=True):
            yield text[begin:end]
            begin = end
    if begin < len(text):
        yield text[begin:]


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), BLOCK_CHARACTERS):
            yield text[start : start + BLOCK_CHARACTERS]


class _Run:
    """Cuts between the tokens of a long run, each chosen with the tokens that follow it in view."""

    def __init__(self, cut: Cut, encode: Encode, classes: str) -> None:
        self._cut, self._encode, self._classes = cut, encode, classes
        self._size = WINDOW_CHARACTERS
        self._tokens: Tokens | None = None  # of the window after the last cut, which was chosen by the first of them
        self.is_over = False  # the last cut was one between pieces

    def cuts(self, text: str, *, is_last: bool) -> Iterator[int]:
        """Where to cut a text that begins at the last cut; `is_last`: nothing follows it."""
        begin = 0
        while len(text) - begin > (self._size if is_last else 2 * self._size):
            window = text[begin : begin + self._size]
            between = self._cut(window)
            if between:
                self.is_over = True
                yield begin + between
                return
            tokens = self._tokens or self._encode(window)
            found = self._find(text[begin : begin + 2 * self._size], tokens)
            if found is not None:
                end, self._tokens = found
                self._size = WINDOW_CHARACTERS
                begin += end
                yield begin
                continue
            self._size *= 2
            if self._tokens is not None:
                self._tokens = self._encode(text[begin : begin + self._size])
                if self._tokens.ids[0] != tokens.ids[0]:
                    raise RuntimeError("a long run of characters was cut where its tokens depend on what follows")

    def _find(self, text: str, tokens: Tokens) -> tuple[int, Tokens] | None:
        """A cut within the first window, whose tokens these are, and the tokens of the window after it."""
        n_tried = 0
        for n in range(len(tokens.ids), 0, -1):
            end = tokens.ends[n - 1]
            if end is None or end > self._size * 3 // 4 or not _within_class(text, end, self._classes):
                continue
            if end < self._size // 4 or n_tried == _ATTEMPTS:
                return None
            n_tried += 1
            follows = self._encode(text[end : end + WINDOW_CHARACTERS])
            first = next((i for i in range(n, 0, -1) if end - (tokens.ends[i - 1] or end) >= _CONTEXT_CHARACTERS), 0)
            stop = next((i for i, at in enumerate(follows.ends, 1) if (at or 0) >= _CONTEXT_CHARACTERS), None)
            if stop is None:
                continue
            start = tokens.ends[first - 1] if first else 0
            around = text[start : end + (follows.ends[stop - 1] or 0)]
            if self._encode(around).ids == [*tokens.ids[first:n], *follows.ids[:stop]]:
                return end, follows
        return None


def gpt2_cut(text: str) -> int:
    """The last position in `text` where GPT-2's split always cuts; 0 where none is found."""
    # No piece of GPT-2's split goes on from a non-space to a space, and none looks behind itself. Python's spaces
    # include all of the split's, which makes `end` follow a non-space.
    end = len(text)
    for _ in range(_ATTEMPTS):
        at = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        end = len(text[: at + 1].rstrip())
        if not end or text[end] in " \n\t\r":
            break
    else:
        return 0
    if end:
        return end
    # Nor does one go on from letters or digits to anything else, or from other characters to letters or digits, except
    # from an apostrophe to a contraction.
    for at in range(len(text) - 1, max(0, len(text) - _SCANNED_CHARACTERS), -1):
        before, after = character_class(text[at - 1]), character_class(text[at])
        if before != after and before in "LNO" and after in "LNO" and text[at - 1] != "'":
            return at
    return 0


def gpt4_cut(text: str) -> int:
    """The last position in `text` where the split of GPT-4's cl100k_base always cuts; 0 where none is found."""
    # As above, with two exceptions: punctuation takes the line ends after it along, and a word the character before it.
    end = len(text)
    for _ in range(_ATTEMPTS):
        at = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        end = len(text[: at + 1].rstrip())
        if not end:
            break
        if text[end] in " \t" or (text[end] in "\r\n" and character_class(text[end - 1]) in "LN"):
            return end
    for at in range(len(text) - 1, max(0, len(text) - _SCANNED_CHARACTERS), -1):
        before, after = character_class(text[at - 1]), character_class(text[at])
        if before != after and before + after in ("LN", "NL", "LO", "NO", "ON"):
            return at
    return 0


def no_cut(text: str) -> int:
    """0: nothing is known of where a text may be cut."""
    return 0


@lru_cache(1 << 14)
def character_class(character: str) -> str:
    """L for a letter, N for a number, S for a space, O for another character as GPT-2's split tells them apart; "?" for
    one on which versions of Unicode differ."""
    category = unicodedata.category(character)
    if unicodedata.ucd_3_2_0.category(character)[0] != category[0] or category[0] == "C":
        return "S" if character in "\t\n\r\v\f" else "?"
    if category[0] in "LN":
        return category[0]
    if category[0] == "Z":
        return "S"
    return "?" if character.isspace() else "O"


def _within_class(text: str, at: int, classes: str) -> bool:
    """Whether a cut is inside a run of one class: not near its ends, where a contraction or the last of several spaces
    is another piece."""
    around = text[at - 4 : at + 2]
    found = {character_class(character) for character in around}
    return at >= 4 and len(around) == 6 and len(found) == 1 and found <= set(classes)
