"""Filters: the quality and repetition rules of Gopher (Rae et al. 2021, section A.1.1 and table A1).

A word is what stands between spaces.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gptlab.data.curation.config import GopherQualityConfig, GopherRepetitionConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.data.curation.words import ngram_hashes

_ELLIPSES = ("...", "\u2026")
_BULLETS = (
    "\u2022",
    "\u2023",
    "\u25b6",
    "\u25c0",
    "\u25e6",
    "\u25a0",
    "\u25a1",
    "\u25aa",
    "\u25ab",
    "\u2013",
    "*",
    "-",
)
_TOP = (2, 3, 4)
_DUPLICATE = (5, 6, 7, 8, 9, 10)


class GopherQuality(DocumentFilter):
    """Length, words, symbols, lists, ellipses and stop words of a text in natural language."""

    rules = (
        *("min_words", "max_words", "min_mean_word_length", "max_mean_word_length", "max_symbols_per_word"),
        *("max_bullet_line_fraction", "max_ellipsis_line_fraction"),
        *("min_alphabetic_word_fraction", "min_stop_words"),
    )

    def __init__(self, config: GopherQualityConfig) -> None:
        self._config = config
        self._stop_words = frozenset(word.lower() for word in config.stop_words)

    def check(self, candidate: Candidate) -> Removal | None:
        config, text, words = self._config, candidate.text, candidate.words
        n = len(words)
        if config.min_words is not None and n < config.min_words:
            return Removal("min_words", f"{n:,} words, fewer than {config.min_words:,}")
        if config.max_words is not None and n > config.max_words:
            return Removal("max_words", f"{n:,} words, more than {config.max_words:,}")
        if not n:
            return None
        mean = sum(map(len, words)) / n
        if config.min_mean_word_length is not None and mean < config.min_mean_word_length:
            return Removal(
                "min_mean_word_length", f"words of {mean:.1f} characters, less than {config.min_mean_word_length}"
            )
        if config.max_mean_word_length is not None and mean > config.max_mean_word_length:
            return Removal(
                "max_mean_word_length", f"words of {mean:.1f} characters, more than {config.max_mean_word_length}"
            )
        if config.max_symbols_per_word is not None:
            counts = {"#": text.count("#"), "...": sum(map(text.count, _ELLIPSES))}
            for symbol, count in counts.items():
                if count / n > config.max_symbols_per_word:
                    return Removal(
                        "max_symbols_per_word",
                        f"{count / n:.2f} {symbol} a word, more than {config.max_symbols_per_word}",
                    )
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        for rule, what, found in (
            ("max_bullet_line_fraction", "begin with a bullet", sum(line.startswith(_BULLETS) for line in lines)),
            ("max_ellipsis_line_fraction", "end in an ellipsis", sum(line.endswith(_ELLIPSES) for line in lines)),
        ):
            most = getattr(config, rule)
            if most is not None and found / len(lines) > most:
                return Removal(rule, f"{found / len(lines):.0%} of the lines {what}, more than {most:.0%}")
        least = config.min_alphabetic_word_fraction
        if least is not None:
            share = sum(any(map(str.isalpha, word)) for word in words) / n
            if share < least:
                return Removal(
                    "min_alphabetic_word_fraction", f"{share:.0%} of the words have a letter, less than {least:.0%}"
                )
        if config.min_stop_words is not None and self._stop_words:
            stop_words = self._stop_words & {word.lower() for word in words}
            if len(stop_words) < config.min_stop_words:
                return Removal(
                    "min_stop_words", f"{len(stop_words)} of the stop words, fewer than {config.min_stop_words}"
                )
        return None


class GopherRepetition(DocumentFilter):
    """Shares of lines, paragraphs and n-grams of words that are there again.

    Lines are counted where they are not blank; paragraphs are between blank lines. The first of equal ones does not
    count. Shares of characters are of those in words, without the spaces between them; of overlapping n-grams a
    character counts once.
    """

    rules = (
        *("max_duplicate_line_fraction", "max_duplicate_paragraph_fraction"),
        *("max_duplicate_line_character_fraction", "max_duplicate_paragraph_character_fraction"),
        *(f"max_top_{n}gram_character_fraction" for n in (2, 3, 4)),
        *(f"max_duplicate_{n}gram_character_fraction" for n in (5, 6, 7, 8, 9, 10)),
    )

    def __init__(self, config: GopherRepetitionConfig) -> None:
        self._config = config

    def check(self, candidate: Candidate) -> Removal | None:
        text = candidate.text
        for unit, parts in (
            ("line", [line for line in map(str.strip, text.splitlines()) if line]),
            ("paragraph", [part for part in map(str.strip, re.split(r"\n\s*\n", text)) if part]),
        ):
            again, characters = _duplicates(parts)
            for rule, share, what in (
                (f"max_duplicate_{unit}_fraction", again, f"{unit}s"),
                (f"max_duplicate_{unit}_character_fraction", characters, f"characters in {unit}s"),
            ):
                most = getattr(self._config, rule)
                if most is not None and share > most:
                    return Removal(rule, f"{share:.0%} of the {what} are there again, more than {most:.0%}")
        return self._ngrams(candidate.words)

    def _ngrams(self, words: Sequence[str]) -> Removal | None:
        if len(words) < 2:
            return None
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint64)
        lengths = np.array([len(word) for word in words])
        total = int(lengths.sum())
        before = np.concatenate([[0], np.cumsum(lengths)])
        for n in _TOP:
            rule = f"max_top_{n}gram_character_fraction"
            most = getattr(self._config, rule)
            if most is None or len(words) < n:
                continue
            _, first, counts = np.unique(ngram_hashes(ids, n), return_index=True, return_counts=True)
            if counts.max() < 2:
                return None  # no word pair is there twice, and so nothing longer
            places = first[counts == counts.max()]
            # Of several that are as frequent the longest.
            place = int(places[np.argmax(before[places + n] - before[places])])
            share = int(counts.max()) * int(before[place + n] - before[place]) / total
            if share > most:
                return Removal(
                    rule,
                    f"{' '.join(words[place : place + n])!r} is {min(share, 1):.0%} of the text, more than {most:.0%}",
                )
        for n in _DUPLICATE:
            rule = f"max_duplicate_{n}gram_character_fraction"
            most = getattr(self._config, rule)
            if most is None or len(words) < n:
                continue
            grams = ngram_hashes(ids, n)
            again = np.ones(len(grams), dtype=bool)
            again[np.unique(grams, return_index=True)[1]] = False
            if not again.any():
                return None
            # How many of the n-grams that are there again a word is in.
            changes = np.zeros(len(words) + 1, dtype=np.int64)
            starts = np.flatnonzero(again)
            np.add.at(changes, starts, 1)
            np.add.at(changes, starts + n, -1)
            share = int(lengths[np.cumsum(changes[:-1]) > 0].sum()) / total
            if share > most:
                return Removal(
                    rule, f"{share:.0%} of the text is in {n}-grams that are there again, more than {most:.0%}"
                )
        return None


def _duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """The shares of parts, and of the characters in them, that repeat an earlier part."""
    if not parts:
        return 0.0, 0.0
    counts = Counter(parts)
    again = sum(count - 1 for count in counts.values())
    characters = sum((count - 1) * len(part) for part, count in counts.items())
    return again / len(parts), characters / sum(map(len, parts))
