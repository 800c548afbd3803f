"""Filter: the rules of C4 (Raffel et al. 2020, section 2.2)."""

import re
from pathlib import Path

from gptlab.data.curation.config import C4Config
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.errors import UserError

_ENDS = (".", "!", "?", '"', "\u201d")
_ELLIPSES = ("...", "\u2026")
# The end of a sentence, with closing quotation marks and brackets; possessive, since a row of dots may be long.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'\u201d\u2019)\]]*+(?=\s|$)")


class C4(DocumentFilter):
    """Removes lines that are no text, then documents with too little left, placeholders, code or bad words."""

    rules = ("lines", "document_phrases", "bad_words_file", "min_sentences")
    rewrites = True

    def __init__(self, config: C4Config) -> None:
        self._config = config
        self._line_phrases = [phrase.lower() for phrase in config.line_phrases]
        self._document_phrases = [phrase.lower() for phrase in config.document_phrases]
        words = [re.escape(word) for word in _bad_words(config.bad_words_file)]
        self._bad = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None

    def rewrite(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if self._stays(line.strip())]
        return text if len(kept) == len(lines) else "".join(kept).rstrip()

    def _stays(self, line: str) -> bool:
        config = self._config
        if config.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith(_ELLIPSES)):
            return False
        if config.min_words_per_line is not None and len(line.split()) < config.min_words_per_line:
            return False
        lowered = line.lower()
        return not any(phrase in lowered for phrase in self._line_phrases)

    def check(self, candidate: Candidate) -> Removal | None:
        if not candidate.text.strip():
            return Removal("lines", "no line is left")
        lowered = candidate.text.lower()
        if found := next((phrase for phrase in self._document_phrases if phrase in lowered), None):
            return Removal("document_phrases", f"it has {found!r}")
        if self._bad is not None and (word := self._bad.search(lowered)):
            return Removal("bad_words_file", f"it has {word[0]!r}")
        least = self._config.min_sentences
        if least is not None:
            n = len(_SENTENCE_END.findall(candidate.text))
            if n < least:
                return Removal("min_sentences", f"{n} sentences, fewer than {least}")
        return None


def _bad_words(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read ({error}); name a text file with a word a line") from None
    return [line.strip().lower() for line in lines if line.strip()]
