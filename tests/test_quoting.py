"""Text as it is typed: against Hydra's own reading of quotes, and by hand."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gptlab.quoting import entries, is_plain, items, listed, quote, split, unquote

TEXTS = [
    "",
    "a",
    "it's",
    "'",
    '"',
    "\\",
    "\\\\",
    "a\\'",
    "a\\\n",
    "'a",
    '"x" y',
    "a'b'c",
    "\\'",
    " a ",
    "[INST] {q}",
    "日本",
]
NOT_TEXT = ["1", "-1", "1.10", ".5", "1e3", "2024_01_15", "inf", "-nan", "true", "NULL", "0x1F", "a b", "(a)", "a=b"]


@pytest.mark.parametrize("text", TEXTS)
def test_hydra_reads_a_quoted_text_as_it_is(text):
    assert OverridesParser.create().parse_override(f"key={quote(text)}").value() == text
    assert unquote(quote(text)) == text


@pytest.mark.parametrize("text", ["a", "runs/x-1.5/last.ckpt", "./a", "_1", "info", "nullable", "x.1_0"])
def test_hydra_reads_a_plain_text_as_it_is(text):
    assert is_plain(text) and OverridesParser.create().parse_override(f"key={text}").value() == text


@pytest.mark.parametrize("text", NOT_TEXT)
def test_what_hydra_would_read_as_something_else_is_not_plain(text):
    assert not is_plain(text)


def test_quotes_count_only_around_a_whole_text():
    assert unquote('"hello" she "said"') == '"hello" she "said"' and unquote('"a \\"b\\""') == 'a "b"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("a, it's ,'b, c',[d,e],f(g,h)", ["a", "it's", "'b, c'", "[d,e]", "f(g,h)"]),
        ("[a,b", ["[a", "b"]),
        ("a,", ["a", ""]),
        ('["a]", b],c', ['["a]", b]', "c"]),
    ],
)
def test_commas_within_quotes_and_brackets_separate_nothing(text, expected):
    assert split(text) == expected


def test_lists_and_mappings_hold_texts():
    assert items("[[MASK], 1.10, 'a, b',\"it's\", true]") == ["[MASK]", "1.10", "a, b", "it's", "true"]
    assert items("[]") == [] and items("a") is None and items("[a,,b]") is None
    assert listed(["a b", "a, b", "1_0"]) == "[a b,'a, b',1_0]"
    assert entries('{user: "U: {content}", b: A {content}}') == {"user": "U: {content}", "b": "A {content}"}
    assert entries("{a}") is None and entries("a") is None
