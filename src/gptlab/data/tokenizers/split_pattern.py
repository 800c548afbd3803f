"""The regular expressions that cut a text into pieces before byte-pair encoding, which merges within a piece only."""

from collections.abc import Callable
from typing import NamedTuple

from gptlab.data.tokenizers.cutting import gpt2_cut, gpt4_cut, no_cut
from gptlab.errors import UserError, first_line


class SplitPattern(NamedTuple):
    """A regular expression, and where a text may be cut so that its parts are split as the whole is.

    `cut` gives the last such position in a text, 0 where unknown; runs of characters of one of `classes` may also be
    cut between two of their tokens (see `cutting.recut`).
    """

    expression: str
    cut: Callable[[str], int]
    classes: str


_NAMED = {
    # GPT-2's (Radford et al. 2019). Looking ahead is kept out of the group: the engine behind tiktoken then runs the
    # group as one automaton, 1.7 times as fast as tiktoken's own spelling, which gives the same pieces.
    "gpt2": SplitPattern(
        r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s", gpt2_cut, "LNSO"
    ),
    # That of GPT-4's cl100k_base, as tiktoken publishes it: numbers by three digits, line ends apart from other space,
    # contractions in either case. A run of digits is cut by threes from its beginning, one of spaces by what follows.
    "gpt4": SplitPattern(
        r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n])"
        r"|\s+(?!\S)|\s",
        gpt4_cut,
        "LO",
    ),
}
NAMES = tuple(_NAMED)


def split_pattern(name: str) -> SplitPattern:
    """The pattern of that name, or of a regular expression of one's own; UserError for one that cannot be read.

    What an expression leaves out is split into characters, so that no text is lost. Nothing is known of where a text
    may be cut between its pieces: a document is encoded whole.
    """
    if name in _NAMED:
        return _NAMED[name]
    import regex  # tiktoken's
    import tiktoken
    import tokenizers

    expression = rf"{name}|[\s\S]"
    try:
        if regex.compile(name).match(""):
            raise UserError(f"tokenizer.pattern={name} matches the empty text; let it match one character or more")
        # The two libraries that split by it have engines of their own.
        tokenizers.Regex(expression)
        tiktoken.Encoding(name, pat_str=expression, mergeable_ranks={b"a": 0}, special_tokens={})
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"tokenizer.pattern={name} is neither {' nor '.join(NAMES)} nor a regular expression ({first_line(error)})"
        ) from None
    return SplitPattern(expression, no_cut, "")
