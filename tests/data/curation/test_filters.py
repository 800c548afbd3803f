"""Each filter of single documents against thresholds worked out by hand."""

import random
import re

import pytest

from gptlab import UserError
from gptlab.data.curation.c4 import _SENTENCE_END
from gptlab.data.curation.config import FilterConfig, filter_configs
from gptlab.data.curation.filter import Candidate
from gptlab.registry import variants

# 60 words of natural language, of 3 to 10 characters on average, with stop words, in three sentences of one line each.
LINES = [
    "The committee agreed that the proposal should be revised before it meets again, and that every member of the "
    "group would have a copy.",
    "Most of the engineers who read the first version found the chapter on cooling to be clear, with two exceptions.",
    "A second reading is planned for the end of March, when the results of the tests that were made in winter are "
    "known.",
]
PROSE = "\n".join(LINES)


def judged(kind, text, fields=None, **options):
    """The rule by which a document is removed, None where it stays."""
    (config,) = filter_configs({kind: options}).values()
    config.check(f"data.filters.{kind}")
    one = config.build()
    found = one.check(Candidate(one.rewrite(text), fields or {}, "a.jsonl#0"))
    assert found is None or found.rule in one.rules
    return found and found.rule


@pytest.mark.parametrize("kind", ["gopher_quality", "gopher_repetition", "c4"])
def test_good_prose_stays(kind):
    assert judged(kind, PROSE) is None


def test_every_threshold_is_a_rule_that_null_turns_off():
    for kind in ("gopher_quality", "gopher_repetition", "length", "score"):
        config = variants("filter")[kind]
        thresholds = {name for name in config.__dataclass_fields__ if name.startswith(("min_", "max_"))}
        (found,) = filter_configs({kind: {"min_words": 1} if kind == "length" else {}}).values()
        assert set(found.build().rules) == thresholds


@pytest.mark.parametrize(
    ("text", "options", "rule"),
    [
        ("abcd", {"min_characters": 5}, "min_characters"),
        ("abcde", {"min_characters": 5}, None),
        ("abcdef", {"max_characters": 5}, "max_characters"),
        ("a b  c", {"min_words": 4}, "min_words"),
        ("a b  c", {"min_words": 3, "max_words": 3}, None),
        ("a b\nc d", {"max_words": 3}, "max_words"),
    ],
)
def test_length(text, options, rule):
    assert judged("length", text, **options) == rule


WORDS = PROSE.split()


@pytest.mark.parametrize(
    ("text", "options", "rule"),
    [
        (" ".join(WORDS[:49]), {}, "min_words"),
        (" ".join(WORDS[:50]), {}, None),
        (" ".join(WORDS[:50]), {"max_words": 49}, "max_words"),
        ("of be to " * 20, {}, "min_mean_word_length"),  # (2 + 2 + 2) / 3
        ("of be to " * 20, {"min_mean_word_length": None}, None),
        ("the of " + "internationally " * 60, {}, "max_mean_word_length"),  # (3 + 2 + 60 * 15) / 62 = 14.6
        (" ".join(WORDS[:50]) + " #####", {}, None),  # 5 in 51 words
        (" ".join(WORDS[:50]) + " ######", {}, "max_symbols_per_word"),  # 6 in 51 words
        (" ".join(WORDS[:50]) + " ... \u2026 ... ... ... ...", {}, "max_symbols_per_word"),
        ("\n".join(f"- {line}" for line in LINES), {}, "max_bullet_line_fraction"),
        ("\n".join([*(f"* {line}" for line in LINES), *LINES]), {}, None),  # half of them
        ("\n".join([LINES[0] + "...", *LINES[1:]]), {}, "max_ellipsis_line_fraction"),  # 1 of 3
        ("\n".join([LINES[0] + "...", *LINES[1:], *LINES]), {}, None),  # 1 of 6
        (" ".join([*WORDS[:40], *["1234"] * 11]), {}, "min_alphabetic_word_fraction"),  # 40 of 51
        (" ".join([*WORDS[:40], *["1234"] * 10]), {}, None),  # 40 of 50
        ("the " + "lorem ipsum dolor amet " * 20, {}, "min_stop_words"),
        ("the with " + "lorem ipsum dolor amet " * 20, {}, None),
        ("lorem ipsum dolor amet " * 20, {"min_stop_words": None}, None),
        ("", {"min_words": None}, None),
    ],
)
def test_gopher_quality(text, options, rule):
    assert judged("gopher_quality", text, **options) == rule


def lines(n, again, line="%04d"):
    """n lines of one length, of which so many are the first one again, with others between them."""
    others = [line % number for number in range(1, n - again)]
    return [line % 0, *(one for other in others[:again] for one in (other, line % 0)), *others[again:]]


@pytest.mark.parametrize(
    ("text", "options", "rule"),
    [
        ("\n".join(lines(10, 4)), {}, "max_duplicate_line_fraction"),
        ("\n".join(lines(10, 3)), {"max_duplicate_line_character_fraction": None}, None),  # 30% is not more than 30%
        ("\n".join(lines(10, 3)), {}, "max_duplicate_line_character_fraction"),  # 3 * 4 of 40 characters
        ("\n".join(lines(10, 2)), {}, None),
        (
            "\n\n".join(lines(10, 4)),
            {"max_duplicate_line_fraction": None, "max_duplicate_line_character_fraction": None},
            "max_duplicate_paragraph_fraction",
        ),
        (
            "\n\n".join(lines(10, 3)),
            {"max_duplicate_line_character_fraction": None},
            "max_duplicate_paragraph_character_fraction",
        ),
        # 40 characters; "aa bb" has 4 and is there twice or three times.
        ("aa bb cccccccc aa bb dddddddd eeeeeeee ffffffff", {}, None),  # 8 of 40
        ("aa bb cccccccc aa bb dddddddd aa bb eeeeeeee ffff", {}, "max_top_2gram_character_fraction"),  # 12 of 40
        ("aa bb cccccccc aa bb dddddddd aa bb eeeeeeee ffff", {"max_top_2gram_character_fraction": 0.3}, None),
        # 4 + 4 of 40 characters are a 3-gram that is there twice: 0.2 of them.
        ("a b cc dddddddd a b cc eeeeeeee ffffffff gggggggg", {}, "max_top_3gram_character_fraction"),
        ("a b cc dddddddd a b cc eeeeeeee ffffffff gggggggggggggg", {}, None),  # 8 of 46
        ("short text without repetition", {}, None),
        ("", {}, None),
    ],
)
def test_gopher_repetition(text, options, rule):
    assert judged("gopher_repetition", text, **options) == rule


@pytest.mark.parametrize(("n", "most"), [(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)])
def test_gopher_repetition_of_long_ngrams(n, most):
    """A phrase of n words of one character is there again, in a text of single characters of which all else differ."""
    phrase = [chr(0x4E00 + number) for number in range(n)]
    for share, expected in ((most - 0.02, None), (most + 0.02, f"max_duplicate_{n}gram_character_fraction")):
        others = [chr(0x5E00 + number) for number in range(round(n / share) - 2 * n)]
        text = " ".join([*phrase, *others, *phrase])
        tops = {f"max_top_{size}gram_character_fraction": None for size in (2, 3, 4)}
        shorter = {f"max_duplicate_{size}gram_character_fraction": None for size in range(5, n)}
        assert judged("gopher_repetition", text, **tops, **shorter) == expected


def test_characters_of_overlapping_ngrams_count_once():
    """Ten words and the ten again, without other text: half of the characters, however many 5-grams overlap."""
    words = [chr(0x4E00 + number) for number in range(10)]
    options = {f"max_top_{size}gram_character_fraction": None for size in (2, 3, 4)}
    text = " ".join(words + words)
    assert judged("gopher_repetition", text, max_duplicate_5gram_character_fraction=0.49, **options) is not None
    others = {f"max_duplicate_{size}gram_character_fraction": None for size in range(6, 11)}
    assert judged("gopher_repetition", text, max_duplicate_5gram_character_fraction=0.5, **options, **others) is None


@pytest.mark.parametrize(
    ("text", "left", "rule"),
    [
        (f"{PROSE}\nMenu\nHome", PROSE, None),
        (f"{LINES[0]}\nThis line has no end\n{LINES[1]}\n{LINES[2]}", PROSE, None),
        (f"{LINES[0]}\nThis line ends in an ellipsis...\n{LINES[1]}\n{LINES[2]}", PROSE, None),
        (f"{LINES[0]}\nFour words, so short.\n{LINES[1]}\n{LINES[2]}", PROSE, None),
        (f"{LINES[0]}\nPlease turn on JavaScript in your browser now.\n{LINES[1]}\n{LINES[2]}", PROSE, None),
        (f"{PROSE}\nSee our Privacy Policy for all of the details.", PROSE, None),
        ("\n".join(LINES[:2]), "\n".join(LINES[:2]), "min_sentences"),
        (f"{PROSE}\nLorem Ipsum dolor sit amet and so on.", None, "document_phrases"),
        (f"{PROSE}\nint main() {{ return 0; }} is the whole program.", None, "document_phrases"),
        ("Menu\nHome", "", "lines"),
    ],
)
def test_c4(text, left, rule):
    (config,) = filter_configs({"c4": {}}).values()
    if left is not None:
        assert config.build().rewrite(text) == left
    assert judged("c4", text) == rule


def test_c4_counts_sentences_in_time_that_grows_with_the_text():
    """A row of dots is one end, however long; the expression equals the plain one, which is quadratic there."""
    plain = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s|$)")
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("a .!?\"')", k=draw.randint(0, 12)))
        assert len(_SENTENCE_END.findall(text)) == len(plain.findall(text)), text
    assert len(_SENTENCE_END.findall("." * 500_000 + "x.")) == 1


def test_c4_options(tmp_path):
    assert judged("c4", "One. Two! Three?", min_words_per_line=None) is None
    assert judged("c4", "no end here but five words", terminal_punctuation=False, min_sentences=None) is None
    assert judged("c4", PROSE, document_phrases=["cooling"]) == "document_phrases"
    (tmp_path / "bad.txt").write_text("Cooling\nscunthorpe\n")
    assert judged("c4", PROSE, bad_words_file=str(tmp_path / "bad.txt")) == "bad_words_file"
    (tmp_path / "bad.txt").write_text("cool\n")  # a word, and not its beginning
    assert judged("c4", PROSE, bad_words_file=str(tmp_path / "bad.txt")) is None


@pytest.mark.parametrize(
    ("url", "options", "rule"),
    [
        ("https://en.wikipedia.org/wiki/Cat", {"deny_domains": ["wikipedia.org"]}, "deny_domains"),
        ("HTTPS://EN.WIKIPEDIA.ORG:443/wiki", {"deny_domains": ["Wikipedia.org"]}, "deny_domains"),
        ("en.wikipedia.org/wiki/Cat", {"deny_domains": ["wikipedia.org"]}, "deny_domains"),
        ("https://notwikipedia.org/", {"deny_domains": ["wikipedia.org"]}, None),
        ("https://a.org/wikipedia.org", {"deny_domains": ["wikipedia.org"]}, None),
        ("https://wikipedia.org.evil.com/", {"deny_domains": ["wikipedia.org"]}, None),
        ("https://a.org/tag/x", {"deny_patterns": ["/tag/"]}, "deny_patterns"),
        ("https://a.org/x", {"allow_domains": ["a.org"]}, None),
        ("https://b.org/x", {"allow_domains": ["a.org"]}, "allow"),
        ("https://b.org/x", {"allow_domains": ["a.org"], "allow_patterns": [r"^https://b\.org/"]}, None),
        ("https://a.org/x", {"allow_domains": ["a.org"], "deny_patterns": ["x$"]}, "deny_patterns"),
        (None, {"deny_domains": ["a.org"]}, None),
        ("", {"allow_domains": ["a.org"]}, "allow"),
        ("http://[", {"allow_domains": ["a.org"]}, "allow"),
    ],
)
def test_addresses(url, options, rule):
    assert judged("addresses", "text", {"url": url}, **options) == rule


def test_lists_of_addresses_in_files(tmp_path):
    (tmp_path / "deny.txt").write_text("# a comment\nA.org\n\n*.b.org  # why\n")
    options = {"deny_file": str(tmp_path / "deny.txt")}
    for url, rule in (("http://x.a.org", "deny_domains"), ("http://b.org/1", "deny_domains"), ("http://c.org", None)):
        assert judged("addresses", "text", {"url": url}, **options) == rule
    (config,) = filter_configs({"addresses": options}).values()
    before = config.identity(str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "deny.txt").rename(tmp_path / "other" / "list.txt")
    config.deny_file = str(tmp_path / "other" / "list.txt")
    assert config.identity(str(tmp_path)) == before  # the name of the file does not count
    (tmp_path / "other" / "list.txt").write_text("c.org\n")
    assert config.identity(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("value", "rule"), [("3", None), ("2.9", "min_score"), ("1e3", None), (None, "min_score"), ("", "min_score")]
)
def test_score(value, rule):
    assert judged("score", "text", {"score": value}) == rule


def test_a_score_that_is_no_number_is_refused():
    for value in ("many", "nan", "true"):
        with pytest.raises(UserError, match=rf"a\.jsonl#0: the score score={value} is no number"):
            judged("score", "text", {"score": value})


def test_source():
    for value, options, rule in (
        ("wikipedia", {"deny": ["wikipedia"]}, "deny"),
        ("books", {"deny": ["wikipedia"]}, None),
        (None, {"deny": ["wikipedia"]}, None),
        ("books", {"allow": ["web"]}, "allow"),
        (None, {"allow": ["web"]}, "allow"),
        ("1.10", {"allow": ["1.10"]}, None),
    ):
        assert judged("source", "text", {"source": value}, **options) == rule


def test_language():
    pytest.importorskip("py3langid")
    german = (
        "Der Ausschuss war sich einig, dass der Vorschlag vor der nächsten Sitzung überarbeitet werden sollte, und "
        "dass alle Mitglieder der Gruppe bis zum Ende der Woche einen neuen Entwurf bekommen."
    )
    assert judged("language", PROSE) is None and judged("language", german) == "languages"
    assert judged("language", german, languages=["de", "en"]) is None
    assert judged("language", PROSE + german, min_confidence=1.0) in ("languages", "min_confidence")
    assert judged("language", PROSE * 3 + german * 30, max_characters=len(PROSE)) is None
    with pytest.raises(UserError, match="english is no language that py3langid knows"):
        judged("language", PROSE, languages=["english"])


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    from gptlab.data.curation import language

    monkeypatch.setattr(language, "_PACKAGE", "no_such_library")
    (config,) = filter_configs({"language": {}}).values()
    for call in (config.identity, config.build):
        with pytest.raises(UserError, match=r"pip install 'gptlab\[language\]'"):
            call()


@pytest.mark.parametrize(
    ("filters", "what"),
    [
        ({"lenght": {}}, "there is no filter lenght; did you mean length"),
        ({"short": {"type": "lenght"}}, "there is no filter lenght"),
        ({"length": {"min_chars": 3}}, r"unknown config key data\.filters\.length\.min_chars"),
        ({"length": 5}, r"data\.filters\.length=5 holds no options"),
        ({"length": {"min_words": "many"}}, r"data\.filters\.length\.min_words=many must be a whole number"),
        ({"length": {}}, "has nothing to filter by; set one of min_characters"),
        ({"length": {"min_words": 0}}, r"data\.filters\.length\.min_words=0 must be at least 1"),
        ({"length": {"min_words": 9, "max_words": 5}}, "no document would pass"),
        ({"gopher_quality": {"max_bullet_line_fraction": 1.5}}, r"max_bullet_line_fraction=1.5 is outside \[0, 1\]"),
        ({"language": {"languages": []}}, "lets no document pass"),
        ({"addresses": {}}, "has nothing to filter by"),
        ({"addresses": {"deny_patterns": ["("]}}, "is no regular expression"),
        ({"addresses": {"deny_domains": ["http://a.org"]}}, "is no domain"),
        ({"source": {}}, "has nothing to filter by"),
        ({"near_duplicates": {"jaccard": 0.1, "n_hashes": 16}}, "are too few to find documents"),
        ({"contamination": {}}, "has nothing to filter by"),
        ({"contamination": {"paths": ["x"], "min_ngram": 14}}, "is above"),
        ({"contamination": {"paths": [""]}}, "has an empty name"),
        ("length", "is no list of filters"),
    ],
)
def test_what_cannot_be_is_refused(filters, what):
    with pytest.raises(UserError, match=what):
        for name, config in filter_configs(filters).items():
            config.check(f"data.filters.{name}")


def test_null_leaves_a_filter_out_and_a_name_may_be_ones_own():
    found = filter_configs({"length": None, "short": {"type": "length", "min_words": 3}, "c4": {}})
    assert {name: config.type for name, config in found.items()} == {"short": "length", "c4": "c4"}
    assert all(isinstance(config, FilterConfig) for config in found.values())
