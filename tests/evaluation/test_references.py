"""Which choice an answer names: published data sets' shapes, and tables that can be read in two ways."""

import json

import pytest

from gptlab.data.examples.template import Template
from gptlab.evaluation.config import AnswerFormat
from gptlab.evaluation.prompts import read_examples
from gptlab.evaluation.records import Records

SUMS = ["6", "5", "1", "0"]


@pytest.fixture
def references(tmp_path):
    def references(*records, choices="options", answer="{answer}", name="t.jsonl", text=None, **more):
        content = "".join(json.dumps({"q": "?", **record}) + "\n" for record in records) if text is None else text
        (tmp_path / name).write_text(content)
        if not isinstance(choices, str):
            choices = [Template(choice, "choices") for choice in choices]
        found = read_examples(
            Records(name=str(tmp_path / name)), Template("{q}", "prompt"), Template(answer, "answer"), choices, **more
        )
        return [example.answer for example in found.values()]

    return references


def of(answer, options=SUMS):
    return {"options": options, "answer": answer}


def test_a_json_number_is_an_index(references):
    # 2 + 3 and 4 + 5 by index: the options hold "1" too, which is not meant.
    assert references(of(1), of(1, ["10", "9", "1", "0"]), of(0, ["2", "3", "1", "0"])) == ["5", "9", "2"]
    assert references(of(3)) == ["0"]


def test_text_is_read_as_the_whole_table_allows(references):
    assert references(of("5"), of("1")) == ["5", "1"]  # no option has the index 5
    assert references(of("A"), of("D")) == ["6", "0"]  # MMLU's and ARC's letters
    assert references(of("B", ["yes", "no"]), of("A", ["yes", "no"])) == ["no", "yes"]
    assert references(of("2", ["x", "y", "z"]), of("0", ["x", "y", "z"])) == ["z", "x"]
    assert references(of("A", ["A", "B"]), of("B", ["A", "B"])) == ["A", "B"]  # both ways agree
    assert references(of(True, ["true", "false"]), of(False, ["true", "false"])) == ["true", "false"]
    assert references(of(5, [3, 5]), of(3, [3, 5])) == ["5", "3"]  # numbers beside numbers
    assert references(of(1, [2, 1, 3])) == ["1"]  # the choice 1 has the index 1


def test_a_csv_has_text_alone(references):
    header = "q,answer,options\n"
    row = '?,{},"[""6"", ""5"", ""1"", ""0""]"\n'
    assert references(name="t.csv", text=header + row.format("B") + row.format("C")) == ["5", "1"]
    assert references(name="t.csv", text=header + row.format("6") + row.format("1")) == ["6", "1"]
    assert references(name="t.csv", text=header + row.format("3") + row.format("2")) == ["0", "1"]
    with pytest.raises(ValueError, match=r"record 1 of .*'1' can be read as answer_format=choice, '1', and as .*index"):
        references(name="t.csv", text=header + row.format("1"))


@pytest.mark.parametrize(
    "records, message",
    [
        # Text that is an option and an index: which of them is not for us to say.
        ([of("1"), of("0")], r"record 1 of .*'1' can be read as answer_format=choice, '1', and as answer_format=index"),
        ([of("A", ["B", "A"])], "'A' can be read as answer_format=choice, 'A', and as answer_format=letter, 'B'"),
        ([of(1, [1, 2, 3])], "'1' can be read as answer_format=choice, '1', and as answer_format=index, '2'"),
        ([of("5"), of("A")], "record 1 of .* has the answer '5' and record 2 of .* the answer 'A', which name choices"),
        ([of(1), of("6")], "record 1 of .*: the answer 1 is a number and would be an index, '5', where other records"),
        ([of(4)], r"record 1 of .*: the answer '4' is not among the choices 6, 5, 1, 0; .* answer_format=index_from_1"),
        ([of(1), of(4)], r"record 2 of .*: the answer '4' is .* answer_format=index_from_1"),
        ([of(9)], "the answer '9' is not among the choices 6, 5, 1, 0$"),
        ([of("01")], "the answer '01' is not among"),
        ([of("-1")], "the answer '-1' is not among"),
        ([of("E")], "the answer 'E' is not among"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_or_in_none_is_refused(references, records, message):
    with pytest.raises(ValueError, match=message):
        references(*records)


def test_the_format_can_be_given(references):
    assert references(of("1"), of("0"), answer_format=AnswerFormat.index) == ["5", "6"]
    assert references(of("1"), of("0"), answer_format=AnswerFormat.choice) == ["1", "0"]
    assert references(of("4"), of(1), answer_format=AnswerFormat.index_from_1) == ["0", "6"]
    assert references(of("A", ["B", "A"]), answer_format=AnswerFormat.letter) == ["B"]
    with pytest.raises(ValueError, match=r"record 1 of .*: the answer '9' is no index of the choices 6, 5, 1, 0; corr"):
        references(of(9), answer_format=AnswerFormat.index)


def test_the_labels_of_arc(references):
    options = {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}
    assert references({"choices": options, "answerKey": "2"}, choices="choices", answer="{answerKey}") == ["blue"]
    options["label"] = ["A", "B", "C"]
    assert references({"choices": options, "answerKey": "C"}, choices="choices", answer="{answerKey}") == ["green"]
    with pytest.raises(ValueError, match="the answer 'D' is not among the labels A, B, C"):
        references({"choices": options, "answerKey": "D"}, choices="choices", answer="{answerKey}")


def test_choices_in_columns_of_their_own(references):
    # PIQA's shape, and MMLU's as CSV.
    piqa = {"sol1": "push it", "sol2": "pull it", "label": 1}
    assert references(piqa, choices=["{sol1}", "{sol2}"], answer="{label}") == ["pull it"]
    mmlu = "q,A,B,C,D,answer\n?,6,5,1,0,B\n?,10,9,8,7,D\n"
    assert references(name="t.csv", text=mmlu, choices=["{A}", "{B}", "{C}", "{D}"]) == ["5", "7"]
