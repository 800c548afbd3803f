import json
from itertools import pairwise

import pytest

from gptlab.data.examples.template import Template
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.evaluation.prompts import Example, Prompts, check_fit, encode_answer, read_examples
from gptlab.evaluation.records import Records
from gptlab.generation.prompt import encode_prompt
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig


def prompts(n=10, **options):
    rows = [Example(where=f"record {i}", prompt=f"q{i}", answer=f"a{i}") for i in range(n)]
    return Prompts(**{"items": rows, "pool": rows, "pool_name": "FILE", "seed": 7} | options)


def test_examples_go_before_the_prompt_with_their_answers():
    found = prompts(separator="##", delimiter="->")
    assert found.text(3, 0) == "q3"
    *shots, last = found.text(3, 4).split("##")
    assert last == "q3" and len(shots) == 4
    for shot in shots:
        question, answer = shot.split("->")
        assert question[1:] == answer[1:] != "3"


def test_more_examples_are_the_same_and_some_more():
    found = prompts()
    for i in range(10):
        drawn = [found.text(i, n).split("\n\n")[:-1] for n in range(10)]
        for fewer, more in pairwise(drawn):
            assert more[: len(fewer)] == fewer and len(more) == len(fewer) + 1
        assert len(set(drawn[9])) == 9
        assert f"q{i} a{i}" not in drawn[9]


def test_examples_are_drawn_by_seed_and_index_alone():
    first, other = prompts(), prompts(seed=8)
    few = prompts(items=prompts().items[:3])
    assert [first.text(i, 5) for i in range(3)] == [few.text(i, 5) for i in range(3)]
    assert [first.text(i, 5) for i in range(10)] != [other.text(i, 5) for i in range(10)]
    ahead = [first.text(i, 1).split(" ")[0] for i in range(10)]
    assert len(set(ahead)) > 3  # not one example for all


def test_a_prompt_is_never_its_own_example_however_often_it_occurs():
    row = Example(where="record 1", prompt="q", answer="a")
    others = [Example(where=f"record {i}", prompt=p, answer="x") for i, p in enumerate(("q", "r", "q", "s"), 2)]
    found = prompts(items=[row], pool=[row, *others])
    for seed in range(20):
        found.seed = seed
        assert sorted(found.text(0, 2).split("\n\n")[:-1]) == ["r x", "s x"]
    found.check([0, 2])
    with pytest.raises(
        ValueError, match=r"num_fewshot=3 needs 3 examples before record 1, and FILE has 2 with another prompt"
    ):
        found.check([0, 3])


def test_every_example_is_as_likely():
    counts = dict.fromkeys(range(10), 0)
    for seed in range(2000):
        for shot in prompts(seed=seed).text(0, 2).split("\n\n")[:-1]:
            counts[int(shot[1])] += 1
    assert counts[0] == 0
    for i in range(1, 10):  # 4000 / 9, with a standard deviation of about 19
        assert abs(counts[i] - 4000 / 9) < 100


def test_an_answer_is_what_follows_the_prompts_tokens(small):
    tokenizer = BPETokenizer.train(300, ["yes no maybe the answer is yes and no, is it"] * 3)
    whole = tokenizer.encode("the answer is yes").tolist()
    model = small(vocab_size=300)
    context = encode_prompt("the answer is", tokenizer, model)
    assert context + encode_answer("the answer is", " ", "yes", tokenizer, model) == whole
    t5 = build_model(EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8), 300, seed=0)
    assert encode_prompt("the answer", tokenizer, t5) == [*tokenizer.encode("the answer"), tokenizer.eot]
    assert encode_answer("the answer is", " ", "yes", tokenizer, t5) == tokenizer.encode("yes").tolist()
    with pytest.raises(ValueError, match="record 1 is empty"):
        encode_prompt("", tokenizer, model, "record 1")


def test_a_prompt_that_does_not_fit_is_refused_with_the_number_of_examples_that_would(small):
    rows = [Example(where=f"record {i}", prompt="q" * i, answer="yes") for i in (1, 9, 4)]
    found = Prompts(items=rows, pool=rows, pool_name="FILE", separator="|", seed=0)
    tokenizer = ByteTokenizer()
    # "qqqq yes|qqqqqqqqq yes|q" has 24 tokens, as the other rows with two shots; an answer's last is not read.
    check_fit(found, [0, 2], [3] * 3, tokenizer, small(context_length=26))
    with pytest.raises(ValueError) as refused:
        check_fit(found, [0, 2], [3] * 3, tokenizer, small(context_length=25))
    assert str(refused.value) == (
        "record 1 with num_fewshot=2 has 24 tokens and needs 3 for its answer: 1 more than the context of 25 holds; "
        "every prompt fits with num_fewshot=1"
    )
    with pytest.raises(ValueError, match=r"3 more .* of 8 holds; leave the record out, shorten prompt=, or "):
        check_fit(found, [0], [3] * 3, tokenizer, small(context_length=8))
    t5 = build_model(EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4), 257, seed=0)
    check_fit(found, [2], [3] * 3, tokenizer, t5)  # positions are relative there


@pytest.fixture
def table(tmp_path):
    def write(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def read(file, *options, **more):
    return [*read_examples(Records(name=str(file)), *options, **more).values()]


def test_records_of_a_table(table):
    file = table({"q": "one?", "a": 1, "c": [1, 2]}, {"q": "two?", "a": "y", "c": ["x", "y"]})
    prompt, answer = Template("Q: {q}", "prompt"), Template(" {a}", "answer")
    one, two = read(file, prompt, answer)
    assert (one.prompt, one.answer, two.answer) == ("Q: one?", "1", "y")
    assert one.where == f"record 1 of {file}" and (one.index, two.index) == (0, 1)
    one, two = read(file, prompt, answer, "c")
    assert one.choices == ("1", "2") and one.answer == "1"  # the choice itself, as in the other record
    assert two.choices == ("x", "y") and two.answer == "y"
    choices = [Template("x", "choices"), Template("y", "choices")]
    (record,) = read(table({"q": "?", "a": 1}), prompt, answer, choices)
    assert record.answer == "y"


def test_only_records_that_are_asked_for_are_read(table):
    records = [{"q": f"q{i}", "a": f"a{i}"} for i in range(6)] + [{"q": "without an answer"}]
    options = Template("{q}", "prompt"), Template("{a}", "answer")
    file = table(*records)
    assert [one.index for one in read(file, *options, first=2)] == [0, 1]
    assert [one.index for one in read(file, *options, first=0, indices=[4, 1])] == [1, 4]
    assert [one.index for one in read(file, *options, first=2, indices=[5])] == [0, 1, 5]
    with pytest.raises(ValueError, match="record 7 of"):
        read(file, *options)
    with pytest.raises(ValueError, match=r"the index 7 is beyond .* whose 7 records have the indices 0 to 6; lower it"):
        read(file, *options, first=0, indices=[7])


def test_bad_records_are_named(table, tmp_path):
    prompt, answer = Template("{q}", "prompt"), Template("{a}", "answer")
    shared = [Template("x", "choices"), Template("y", "choices")]
    for record, choices, message in (
        ({"q": "?"}, None, r"answer has the field \{a\}, which record 1 of .* lacks; it has q"),
        ({"q": "?", "a": " "}, None, "record 1 of .* has no answer"),
        ({"q": "?", "a": "z"}, shared, "record 1 of .*: the answer 'z' is not among the choices x, y"),
        ({"q": "?", "a": "3"}, shared, "the answer '3' is not among the choices x, y"),
        (
            {"q": "?", "a": "x"},
            "c",
            r"choices=c is not a column of record 1 of .*, .* choices=\[yes,no\]",
        ),
        ({"q": "?", "a": "x", "c": "x, y"}, "c", "choices=c in record 1 .* is not a list of two or more texts"),
        ({"q": "?", "a": "x", "c": ["x"]}, "c", "choices=c in record 1 .* is not a list of two or more texts"),
        ({"q": "?", "a": "x", "c": ["x", "x"]}, "c", "has a choice that is empty or given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read(table(record), prompt, answer, choices)
    (tmp_path / "rows.csv").write_text('q,a,c\n?,x,"[""x"", ""y""]"\n')
    (record,) = read(tmp_path / "rows.csv", prompt, answer, "c")
    assert record.choices == ("x", "y")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl is empty; give a table with at least one record"):
        read(tmp_path / "empty.jsonl", prompt, answer)


def test_a_fixed_choice_of_examples_stands_before_every_prompt():
    pool = [Example(where=f"record {i + 1}", index=i, prompt=f"q{i}", answer=f"a{i}") for i in (40, 80, 120)]
    item = Example(where="record 201", index=200, prompt="q200", answer="a200")
    found = Prompts(items=[item], pool=pool, pool_name="FILE", seed=1, fixed=True)
    found.check([0, 3])
    shown = found.composed(0, [0, 1, 3])
    assert shown["prompts"] == {"0": "q200", "1": "q40 a40\n\nq200", "3": "q40 a40\n\nq80 a80\n\nq120 a120\n\nq200"}
    assert shown["fewshot_indices"] == [40, 80, 120] and shown["index"] == 200
