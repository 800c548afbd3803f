"""Config schema: filters of documents before they are tokenized."""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union

from gptlab.errors import UserError, did_you_mean
from gptlab.fields import bounded, check_bounds, shown
from gptlab.registry import register, variants
from gptlab.values import coerce

if TYPE_CHECKING:
    from gptlab.data.curation.filter import CorpusFilter, DocumentFilter


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """A filter; each registers a subclass with `build`. A threshold of null turns its rule off."""

    FILES: ClassVar[tuple[str, ...]] = ()  # keys with files that are read; what counts of them is their content

    type: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a record that are read beside the text."""
        return ()

    def check(self, key: str) -> None:
        """Refuse values that cannot work; `key` is where the filter stands, as data.filters.NAME."""
        check_bounds(self, f"{key}.")
        for name in self.FILES:
            value = getattr(self, name)
            for path in value if isinstance(value, list) else [value]:
                if path == "":
                    raise UserError(f"{key}.{name}= has an empty name; name a file, or leave it out")

    def identity(self, cache_dir: str | None = None) -> dict[str, Any]:
        """JSON values that differ wherever other documents may pass; of files their content, and not their names."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.FILES}
        return {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}

    def build(self, cache_dir: str | None = None) -> Union["DocumentFilter", "CorpusFilter"]:
        """The filter itself; UserError where a file or a library that it needs is missing."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")


def filter_configs(filters: Mapping[str, Any], key: str = "data.filters") -> dict[str, FilterConfig]:
    """The filters of `data.filters`, each by its name, without those that are null.

    UserError for a filter or an option that does not exist, and for a value of another type.
    """
    if not isinstance(filters, Mapping):
        raise UserError(f"{key}={shown(filters)} is no list of filters; write {key}.NAME.OPTION=VALUE")
    found = {}
    for name, given in filters.items():
        where = f"{key}.{name}"
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise UserError(
                f"{where}={shown(given)} holds no options; write {where}.OPTION=VALUE, {where}={{}} for its defaults, "
                f"or {where}=null to leave it out"
            )
        kind = filter_class(given.get("type", name), where)
        hints = typing.get_type_hints(kind)
        options = [f.name for f in fields(kind)]
        values = {}
        for option, value in given.items():
            if option not in options:
                known = [one for one in options if one != "type"]
                raise UserError(f"unknown config key {where}.{option}{did_you_mean(str(option), known)}")
            values[option] = coerce(f"{where}.{option}", value, hints[option])
        found[str(name)] = kind(**values)
    return found


def filter_class(name: Any, where: str) -> type[FilterConfig]:
    """The config class of a filter; `where` is the key that names it."""
    found = variants("filter").get(name)
    if found is None:
        raise UserError(
            f"{where}: there is no filter {name}{did_you_mean(str(name), variants('filter'))}; if it comes from a "
            "plugin, add plugins=[MODULE]. A second filter of one kind has a name of its own and names the kind: "
            f"{where}.type=length"
        )
    return found


def _needs_one(config: FilterConfig, key: str, names: tuple[str, ...], example: str) -> None:
    if all(getattr(config, name) in (None, [], "") for name in names):
        raise UserError(f"{key} has nothing to filter by; set one of {', '.join(names)}, as {key}.{example}")


@register("filter", "length")
class LengthConfig(FilterConfig):
    """Documents of too few or too many characters or words."""

    min_characters: int | None = bounded(None, ge=1)
    max_characters: int | None = bounded(None, ge=1)
    min_words: int | None = bounded(None, ge=1)  # between spaces
    max_words: int | None = bounded(None, ge=1)

    def check(self, key):
        super().check(key)
        _needs_one(self, key, ("min_characters", "max_characters", "min_words", "max_words"), "min_characters=500")
        for unit in ("characters", "words"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise UserError(f"{key}.min_{unit}={least} is above {key}.max_{unit}={most}; no document would pass")

    def build(self, cache_dir=None):
        from gptlab.data.curation.length import Length

        return Length(self)


@register("filter", "language")
class LanguageConfig(FilterConfig):
    """Documents in other languages, as py3langid sees it: naive Bayes over byte n-grams (Lui and Baldwin 2012)."""

    languages: list[str] = field(default_factory=lambda: ["en"])  # by their ISO 639 codes
    min_confidence: float = bounded(0.65, ge=0, le=1)
    max_characters: int = bounded(10_000, ge=1)  # of the beginning, which are looked at

    def check(self, key):
        super().check(key)
        if not self.languages:
            raise UserError(f"{key}.languages=[] lets no document pass; name languages, as {key}.languages=[en]")

    def identity(self, cache_dir=None):
        from gptlab.data.curation.language import version

        return {**super().identity(cache_dir), "library": version()}  # another version may decide otherwise

    def build(self, cache_dir=None):
        from gptlab.data.curation.language import Language

        return Language(self)


@register("filter", "addresses")
class AddressesConfig(FilterConfig):
    """Documents by the address that they come from: lists of domains, each with its subdomains, and patterns."""

    FILES: ClassVar[tuple[str, ...]] = ("allow_file", "deny_file")

    column: str = "url"
    allow_domains: list[str] = field(default_factory=list)
    deny_domains: list[str] = field(default_factory=list)
    allow_patterns: list[str] = field(default_factory=list)  # regular expressions, found anywhere in the address
    deny_patterns: list[str] = field(default_factory=list)
    allow_file: str | None = None  # a domain a line
    deny_file: str | None = None

    @property
    def columns(self):
        return (self.column,)

    def check(self, key):
        super().check(key)
        names = tuple(f.name for f in fields(self) if f.name.startswith(("allow", "deny")))
        _needs_one(self, key, names, "deny_domains=[example.com]")
        for name in ("allow_patterns", "deny_patterns"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(f"{key}.{name}: {pattern} is no regular expression ({error})") from None
        for name in ("allow_domains", "deny_domains"):
            for domain in getattr(self, name):
                if "/" in domain or not domain.strip():
                    raise UserError(
                        f"{key}.{name}: {domain!r} is no domain, such as example.com; a part of an address is found by "
                        f"{key}.{name.replace('domains', 'patterns')}"
                    )

    def identity(self, cache_dir=None):
        from gptlab.data.sources.source import checksums_of

        found = super().identity(cache_dir)
        for name in self.FILES:
            path = getattr(self, name)
            found[name] = None if path is None else checksums_of([Path(path).expanduser()], cache_dir)[0]
        return found

    def build(self, cache_dir=None):
        from gptlab.data.curation.addresses import Addresses

        return Addresses(self)


@register("filter", "score")
class ScoreConfig(FilterConfig):
    """Documents whose link has too low a score: WebText took what a post with at least 3 karma linked to."""

    column: str = "score"
    min_score: float = 3.0

    @property
    def columns(self):
        return (self.column,)

    def build(self, cache_dir=None):
        from gptlab.data.curation.score import Score

        return Score(self)


@register("filter", "source")
class SourceConfig(FilterConfig):
    """Documents by the value of a column, such as the data set they come from: WebText left Wikipedia out."""

    column: str = "source"
    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)

    @property
    def columns(self):
        return (self.column,)

    def check(self, key):
        super().check(key)
        _needs_one(self, key, ("allow", "deny"), "deny=[wikipedia]")

    def build(self, cache_dir=None):
        from gptlab.data.curation.source import Source

        return Source(self)


def _fraction(default: float) -> Any:
    return bounded(default, ge=0, le=1)


STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@register("filter", "gopher_quality")
class GopherQualityConfig(FilterConfig):
    """The quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, section A.1.1)."""

    min_words: int | None = bounded(50, ge=0)
    max_words: int | None = bounded(100_000, ge=1)
    min_mean_word_length: float | None = bounded(3.0, ge=0)
    max_mean_word_length: float | None = bounded(10.0, ge=0)
    max_symbols_per_word: float | None = bounded(0.1, ge=0)  # of # and of ellipses, each
    max_bullet_line_fraction: float | None = _fraction(0.9)
    max_ellipsis_line_fraction: float | None = _fraction(0.3)
    min_alphabetic_word_fraction: float | None = _fraction(0.8)
    min_stop_words: int | None = bounded(2, ge=0)  # different ones of the list
    stop_words: list[str] = field(default_factory=lambda: list(STOP_WORDS))

    def build(self, cache_dir=None):
        from gptlab.data.curation.gopher import GopherQuality

        return GopherQuality(self)


@register("filter", "gopher_repetition")
class GopherRepetitionConfig(FilterConfig):
    """The repetition rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1)."""

    max_duplicate_line_fraction: float | None = _fraction(0.30)
    max_duplicate_paragraph_fraction: float | None = _fraction(0.30)
    max_duplicate_line_character_fraction: float | None = _fraction(0.20)
    max_duplicate_paragraph_character_fraction: float | None = _fraction(0.20)
    max_top_2gram_character_fraction: float | None = _fraction(0.20)
    max_top_3gram_character_fraction: float | None = _fraction(0.18)
    max_top_4gram_character_fraction: float | None = _fraction(0.16)
    max_duplicate_5gram_character_fraction: float | None = _fraction(0.15)
    max_duplicate_6gram_character_fraction: float | None = _fraction(0.14)
    max_duplicate_7gram_character_fraction: float | None = _fraction(0.13)
    max_duplicate_8gram_character_fraction: float | None = _fraction(0.12)
    max_duplicate_9gram_character_fraction: float | None = _fraction(0.11)
    max_duplicate_10gram_character_fraction: float | None = _fraction(0.10)

    def build(self, cache_dir=None):
        from gptlab.data.curation.gopher import GopherRepetition

        return GopherRepetition(self)


@register("filter", "c4")
class C4Config(FilterConfig):
    """The rules of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2); they remove lines, and documents."""

    FILES: ClassVar[tuple[str, ...]] = ("bad_words_file",)

    terminal_punctuation: bool = True  # of a line that stays: . ! ? or a quotation mark, and no ellipsis
    min_words_per_line: int | None = bounded(5, ge=1)
    line_phrases: list[str] = field(
        default_factory=lambda: [
            *("javascript", "terms of use", "privacy policy", "cookie policy"),
            *("uses cookies", "use of cookies", "use cookies"),
        ]
    )  # a line with one is removed, whatever its capitals
    document_phrases: list[str] = field(default_factory=lambda: ["lorem ipsum", "{"])  # likewise a document
    min_sentences: int | None = bounded(3, ge=1)  # of a document
    bad_words_file: str | None = None  # words a line, of which none may be in a document

    def identity(self, cache_dir=None):
        from gptlab.data.sources.source import checksums_of

        path = self.bad_words_file
        content = None if path is None else checksums_of([Path(path).expanduser()], cache_dir)[0]
        return {**super().identity(cache_dir), "bad_words_file": content}

    def build(self, cache_dir=None):
        from gptlab.data.curation.c4 import C4

        return C4(self)


@register("filter", "exact_duplicates")
class ExactDuplicatesConfig(FilterConfig):
    """Documents with the text of an earlier one."""

    def build(self, cache_dir=None):
        from gptlab.data.curation.exact_duplicates import ExactDuplicates

        return ExactDuplicates()


@register("filter", "near_duplicates")
class NearDuplicatesConfig(FilterConfig):
    """Documents that share most of their n-grams of words with an earlier one: MinHash and LSH (Broder 1997)."""

    jaccard: float = bounded(0.75, gt=0, le=1)  # of the sets of n-grams, from which on two documents are alike
    ngram: int = bounded(5, ge=1, le=50)
    n_hashes: int = bounded(256, ge=16, le=4096)  # at most; more estimate the similarity better
    seed: int = bounded(0, ge=0, le=2**32 - 1)  # of the hash functions

    def check(self, key):
        super().check(key)
        from gptlab.data.curation.banding import bands_for

        if bands_for(self.jaccard, self.n_hashes) is None:
            raise UserError(
                f"{key}.n_hashes={self.n_hashes} are too few to find documents of {key}.jaccard={self.jaccard}; "
                "raise one of them"
            )

    def build(self, cache_dir=None):
        from gptlab.data.curation.near_duplicates import NearDuplicates

        return NearDuplicates(self)


@register("filter", "contamination")
class ContaminationConfig(FilterConfig):
    """Documents with n-grams of words of evaluation texts (Brown et al. 2020, arXiv:2005.14165, appendix C)."""

    FILES: ClassVar[tuple[str, ...]] = ("paths",)

    paths: list[str] = field(default_factory=list)  # files, folders, globs and addresses, as data=text reads them
    text_columns: list[str] = field(default_factory=lambda: ["text"])  # of tables; each value is a text
    ngram: int = bounded(13, ge=1, le=100)
    min_ngram: int = bounded(8, ge=1)  # a shorter evaluation text is looked for as a whole, down to so many words
    min_overlaps: int = bounded(1, ge=1)  # n-grams in a document from which on it is removed

    def check(self, key):
        super().check(key)
        _needs_one(self, key, ("paths",), "paths=[FILE]")
        if not self.text_columns:
            raise UserError(f"{key}.text_columns=[] reads nothing of a table; name its columns")
        if self.min_ngram > self.ngram:
            raise UserError(f"{key}.min_ngram={self.min_ngram} is above {key}.ngram={self.ngram}; lower it")

    def identity(self, cache_dir=None):
        from gptlab.data.curation.contamination import fingerprint_of_texts

        return {**super().identity(cache_dir), "paths": fingerprint_of_texts(self, cache_dir)}

    def build(self, cache_dir=None):
        from gptlab.data.curation.contamination import Contamination

        return Contamination(self, cache_dir)


def filter_options() -> dict[str, list[Any]]:
    """Every option that some filter has, with its types, as for `data.filters.NAME.OPTION`."""
    found: dict[str, list[Any]] = {"type": [str]}
    for kind in variants("filter").values():
        hints = typing.get_type_hints(kind)
        for f in fields(kind):
            if f.name != "type":
                found.setdefault(f.name, []).append(hints[f.name])
    return found
