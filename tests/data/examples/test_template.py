import pytest

from gptlab.data.examples.template import Template


def test_a_record_fills_the_fields():
    template = Template("Q: {question} {{ok}}\nA: {answer} {question}", "data.prompt")
    assert template.fields == ("question", "answer")
    filled = template.fill({"question": "1+1?", "answer": 2, "more": None}, "record 1")
    assert filled == "Q: 1+1? {ok}\nA: 2 1+1?"
    assert Template("{a}{b} {c c}", "x").fill({"a": True, "b": 0.5, "c c": ""}, "record 1") == "true0.5 "
    assert Template("plain", "x").fields == () and Template("", "x").fill({}, "record 1") == ""


def test_what_fills_a_field_is_not_read_again():
    assert Template("{a}", "x").fill({"a": "{b} {{ }}", "b": "no"}, "record 1") == "{b} {{ }}"


@pytest.mark.parametrize("field", ["", "0", "a.b", "a[0]", "a!r", "a:>9", " a", "a.__class__", "*", "'a'"])
def test_only_plain_names_are_fields(field):
    with pytest.raises(ValueError, match=r"data\.prompt=.* has the field \{.*\}; a field is the plain name"):
        Template(f"x {{{field}}} y", "data.prompt")


@pytest.mark.parametrize("text", ["{", "a } b", "{a", "a}", "{a {b}"])
def test_a_single_brace_is_refused(text):
    with pytest.raises(
        ValueError, match=r"data\.prompt=.*'[{}]' .*; write a field as \{name\}, and a brace itself as \{\{ or \}\}"
    ):
        Template(text, "data.prompt")


def test_a_record_that_does_not_fit_is_named():
    template = Template("{question}", "data.prompt")
    with pytest.raises(ValueError) as caught:
        template.fill({"text": "x", "answer": "y"}, "record 3 of qa.jsonl")
    expected = "data.prompt has the field {question}, which record 3 of qa.jsonl lacks; it has answer, text"
    assert str(caught.value) == expected
    with pytest.raises(ValueError, match=r"\{question\}, which is null in record 3"):
        template.fill({"question": None}, "record 3")
    with pytest.raises(ValueError, match=r"\{question\}, which holds list in record 3"):
        template.fill({"question": ["a"]}, "record 3")
