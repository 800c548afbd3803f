"""Records as examples: which tokens, which targets, which label; none lost, none in two splits."""

import json
import pickle
import random
from itertools import chain

import numpy as np
import pytest

from gptlab.data import prepare as prepare_module
from gptlab.data.config import Overlong, Split
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import TableConfig, TextConfig
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig, CharConfig, TokenizerConfig, WordPieceConfig

EOT = 256
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


@pytest.fixture
def table(tmp_path):
    """Writes records as JSON lines and gives their config."""

    def table(rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        defaults = {"path": str(path), "cache_dir": str(tmp_path / "cache"), "val_fraction": 0.0, "n_processes": 1}
        return TableConfig(**{**defaults, **settings})

    return table


def run(config, tokenizer=None):
    return prepare(config, tokenizer or ByteConfig(), progress=False)


def examples_of(data, part="train"):
    table = data.examples[part]
    return table.gather(np.arange(len(table)))


def reviews(n):
    draw = random.Random(0)
    return [
        {
            "id": number,
            "text": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
            "mood": draw.choice(["good", "bad"]),
        }
        for number in range(n)
    ]


def test_a_label(table):
    rows = [{"text": "fine", "mood": "good"}, {"text": "no é", "mood": "bad"}, {"text": "x", "mood": "good"}]
    data = run(table(rows, label_column="mood", class_names=["bad", "good"], prompt="Review: {text}"))
    found = examples_of(data)
    for row, (text, label) in zip(found, [("fine", 1), ("no é", 0), ("x", 1)], strict=True):
        assert row.tokens.tolist() == [*f"Review: {text}".encode(), EOT]
        assert row.tokens.dtype == np.int64 and row.scored.dtype == bool
        assert row.scored.all() and row.label == label
    assert data.examples["train"].labels.tolist() == [1, 0, 1]
    assert data.examples["train"].lengths.tolist() == [len(row.tokens) for row in found]
    assert data.examples["train"].tail() is None
    # The token file is the examples one after the other.
    assert data.train.tokens.tolist() == [token for row in found for token in row.tokens]
    assert data.train.n_documents == 3 and data.train.n_bytes == len("Review: " * 3 + "fineno éx") + 1
    assert data.train.unigram_entropy() > 0 and "3 records" in data.description


def test_labels_may_be_numbers(table):
    rows = [{"text": "a", "y": 0}, {"text": "b", "y": 1}, {"text": "c", "y": True}]
    config = table(rows, label_column="y", class_names=["0", "1", "true"])
    assert run(config).examples["train"].labels.tolist() == [0, 1, 2]


def test_a_response(table):
    rows = [{"q": "1+1", "a": 2}, {"q": "x", "a": "yé"}]
    found = examples_of(run(table(rows, prompt="{q}=", response=" {a}")))
    for row, (asked, answer) in zip(found, [("1+1=", " 2"), ("x=", " yé")], strict=True):
        asked, answer = list(asked.encode()), [*answer.encode(), EOT]
        assert row.tokens.tolist() == asked + answer
        assert row.scored.tolist() == [False] * len(asked) + [True] * len(answer)
        assert row.label == -1


def test_prompt_and_response_are_encoded_apart(table):
    rows = [{"q": "the c", "a": "at on"}, *({"q": "the cat", "a": f"on the cat {n}"} for n in range(9))]
    data = run(table(rows, prompt="{q}", response="{a}"), BPEConfig(vocab_size=280))
    vocab = data.tokenizer
    (row,) = data.examples["train"].gather(np.array([0]))
    asked, answer = vocab.encode("the c").tolist(), [*vocab.encode("at on").tolist(), vocab.eot]
    assert row.tokens.tolist() == asked + answer and row.scored.sum() == len(answer)
    assert vocab.encode("the cat on").tolist() != asked + answer[:-1]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
    {"role": "user", "content": "left unanswered"},
]


def test_targets_of_a_conversation_are_the_assistants_messages(table):
    chat = {"system": "{content}\n", "user": "U:{content}\n", "assistant": "A:{content}!\n"}
    (row,) = examples_of(run(table([{"turns": CHAT}], messages="turns", chat=chat)))
    parts = [
        ("Be brief.\nU:Hi\nA:", False),
        ("Hello!\n", True),
        (EOT, True),
        ("U:Bye\nA:", False),
        ("So long!\n", True),
        (EOT, True),
    ]
    tokens = [[part] if part == EOT else list(part.encode()) for part, _ in parts]
    assert row.tokens.tolist() == list(chain(*tokens))
    scored = [[scored] * len(ids) for ids, (_, scored) in zip(tokens, parts, strict=True)]
    assert row.scored.tolist() == list(chain(*scored))


def test_the_usual_conversation_is_readable(table):
    data = run(table([{"turns": CHAT[:3]}], messages="turns"))
    (row,) = examples_of(data)
    expected = "System:\nBe brief.\n\nUser:\nHi\n\nAssistant:\nHello<|endoftext|>"
    assert data.tokenizer.decode(row.tokens) == expected
    assert data.tokenizer.decode(row.tokens[row.scored]) == "Hello<|endoftext|>"


@pytest.mark.parametrize("tokenizer", [BPEConfig(vocab_size=300), CharConfig(), WordPieceConfig(vocab_size=60)])
@pytest.mark.parametrize("n_processes", [1, 2])
def test_every_tokenizer_on_any_number_of_processes(table, tokenizer, n_processes, monkeypatch):
    monkeypatch.setattr(prepare_module, "JOB_CHARACTERS", 100)
    monkeypatch.setattr(prepare_module, "_SMALL_CORPUS_BYTES", 0)
    rows = reviews(60)
    config = table(rows, label_column="mood", class_names=["good", "bad"], n_processes=n_processes)
    data = run(config, tokenizer)
    vocab = data.tokenizer
    end = [] if vocab.eot is None else [vocab.eot]
    for row, found in zip(rows, examples_of(data), strict=True):
        assert found.tokens.tolist() == [*vocab.beginning, *vocab.encode(row["text"]), *end]
        assert found.label == ["good", "bad"].index(row["mood"])
        assert found.scored.tolist() == [False] * len(vocab.beginning) + [True] * (
            len(found.tokens) - len(vocab.beginning)
        )
    assert (vocab.eot is None) == (tokenizer.type == "char") and bool(vocab.beginning) == (
        tokenizer.type == "wordpiece"
    )


def test_each_record_is_in_one_split_and_equal_records_are_together(table):
    rows = reviews(200)
    settings = {"label_column": "mood", "class_names": ["good", "bad"], "val_fraction": 0.2, "test_fraction": 0.1}
    data = run(table([*rows, *rows[:50]], prompt="{id} {text}", **settings))
    texts = {
        part: [bytes(row.tokens[:-1].astype(np.uint8)).decode() for row in examples_of(data, part)]
        for part in ("train", "val", "test")
    }
    wanted = [f"{row['id']} {row['text']}" for row in rows]
    assert sorted(chain(*texts.values())) == sorted(wanted + wanted[:50])
    train, val, test = (set(texts[part]) for part in texts)
    assert not train & val and not train & test and not val & test
    assert 0.1 < len(val) / 200 < 0.3 and 0.04 < len(test) / 200 < 0.2
    # A record stays where it is when others come and go.
    fewer = run(table(rows[100:], prompt="{id} {text}", **settings))
    kept = {bytes(row.tokens[:-1].astype(np.uint8)).decode() for row in examples_of(fewer, "val")}
    assert kept == {text for text in val if int(text.split()[0]) >= 100}


@pytest.mark.parametrize("val_fraction", [0.001, 0.999])
def test_equal_records_are_together_where_a_split_takes_its_only_ones(table, val_fraction):
    rows = [{"q": q, "a": "y"} for q in ("one", "two", "three") for _ in range(7)]
    data = run(table(rows, prompt="{q}", response="{a}", val_fraction=val_fraction, test_fraction=0.0005))
    train, val, test = (
        {bytes(row.tokens[:-1].astype(np.uint8)) for row in examples_of(data, part)} for part in data.examples
    )
    assert [len(train), len(val), len(test)] == [1, 1, 1] and len(train | val | test) == 3


def test_a_vocabulary_is_learned_from_the_training_split(table):
    rows = reviews(50)
    config = table(rows, label_column="mood", class_names=["good", "bad"], val_fraction=0.3)
    data = run(config, BPEConfig(vocab_size=290))
    texts = [data.tokenizer.decode(row.tokens[:-1]) for row in examples_of(data)]
    assert 0 < len(texts) < 50
    assert BPETokenizer.train(290, texts).fingerprint == data.tokenizer.fingerprint


def test_the_second_call_prepares_nothing_and_other_settings_are_other_data(table, monkeypatch):
    rows = reviews(20)
    settings = {"label_column": "mood", "class_names": ["good", "bad"]}
    first = run(table(rows, **settings))
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_build_examples", None)
        again = run(table(rows, **settings))
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    for one, other in zip(examples_of(first), examples_of(again), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.label == other.label
    changes = [
        {"prompt": "{text}."},
        {"class_names": ["bad", "good"]},
        {"drop_unknown_classes": True},
        {"val_fraction": 0.5},
        {"label_column": None, "class_names": [], "response": "{mood}"},
    ]
    others = {run(table(rows, **{**settings, **change})).fingerprint for change in changes}
    assert len(others | {first.fingerprint}) == 6
    same = {run(table(rows, **settings, overlong=way, n_workers=1)).fingerprint for way in Overlong}
    assert same == {first.fingerprint}
    assert run(table(rows[1:], **settings)).fingerprint != first.fingerprint
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "corpus.json",
        "examples.json",
        "tokenizer.json",
        "train.bin",
        "train.bin.verified",
        "train.labels.npy",
        "train.labels.npy.verified",
        "train.offsets.npy",
        "train.offsets.npy.verified",
        "train.spans.npy",
        "train.spans.npy.verified",
    ]


@pytest.mark.parametrize("name", ["train.labels.npy", "train.offsets.npy", "train.spans.npy", "examples.json"])
def test_altered_examples_are_refused(table, name):
    config = table(reviews(5), label_column="mood", class_names=["good", "bad"])
    path = run(config).folder / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-8] + b"\1" + whole[-7:], b"", b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"missing or altered .*; delete it and run again"):
            run(config)
    path.unlink()
    with pytest.raises(ValueError, match=r"missing or altered .*; delete it and run again"):
        run(config)
    path.write_bytes(whole)
    run(config)


def test_no_pickle_is_read(table):
    config = table(reviews(5), label_column="mood", class_names=["good", "bad"])
    path = run(config).folder / "train.labels.npy"
    np.save(path, np.array([{}] * 5, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        run(config)


# Overlong examples


def long_rows(form):
    rows = [{"text": "abcdefgh"[:n], "answer": "xyz"[: 1 + n % 3], "y": "p"} for n in (3, 8, 5, 1)]
    return rows, {"label": {"label_column": "y", "class_names": ["p", "q"]}, "response": {"response": "{answer}"}}[form]


def test_examples_that_fit_are_left_alone(table):
    rows, settings = long_rows("label")
    whole = run(table(rows, **settings)).examples["train"]
    for way in Overlong:
        assert whole.fit(9, way) is whole


@pytest.mark.parametrize("form", ["label", "response"])
def test_error_says_how_many_and_what_to_type(table, form):
    rows, settings = long_rows(form)
    whole = run(table(rows, **settings)).examples["train"]
    n, excess = {"label": (2, 4), "response": (2, 7)}[form]
    with pytest.raises(ValueError) as caught:
        whole.fit(5, Overlong.error)
    assert str(caught.value) == (
        f"{n} of the 4 examples of the train split have more than 5 tokens, the longest {excess} more; "
        f"allow {excess} tokens more with data.context_length (and model.context_length), leave them out with "
        "data.overlong=drop, or shorten them with data.overlong=truncate"
    )


def test_drop_keeps_the_others(table):
    rows, settings = long_rows("label")
    whole = run(table(rows, **settings)).examples["train"]
    kept = whole.fit(6, Overlong.drop)
    assert [bytes(row.tokens[:-1].tolist()) for row in kept.gather(np.arange(len(kept)))] == [b"abc", b"abcde", b"a"]
    assert len(kept) == 3 and kept.lengths.tolist() == [4, 6, 2] and len(whole) == 4
    assert kept.fit(4, Overlong.drop).lengths.tolist() == [4, 2]
    with pytest.raises(
        ValueError, match=r"4 of the 4 examples .* data\.overlong=drop leaves none; .*data\.overlong=truncate"
    ):
        whole.fit(1, Overlong.drop)


def test_truncate_takes_the_end_of_a_labeled_text_but_not_its_end_of_text(table):
    rows, settings = long_rows("label")
    whole = run(table(rows, **settings)).examples["train"]
    cut = whole.fit(5, Overlong.truncate)
    found = cut.gather(np.arange(4))
    assert [row.tokens.tolist() for row in found] == [[*text, EOT] for text in (b"abc", b"abcd", b"abcd", b"a")]
    assert all(len(row.scored) == len(row.tokens) for row in found) and cut.lengths.tolist() == [4, 5, 5, 2]
    with pytest.raises(ValueError, match="leaves no text in 1 tokens"):
        whole.fit(1, Overlong.truncate)
    characters = run(table(rows, **settings), CharConfig()).examples["train"]
    assert characters.fit(2, Overlong.truncate).gather(np.array([1]))[0].tokens.tolist() == [0, 1]


def test_truncate_takes_the_beginning_of_a_prompt_and_keeps_the_response(table):
    rows, settings = long_rows("response")
    whole = run(table(rows, **settings)).examples["train"]
    found = whole.fit(6, Overlong.truncate).gather(np.arange(4))
    wanted = [(b"abc", b"x"), (b"gh", b"xyz"), (b"de", b"xyz"), (b"a", b"xy")]
    for row, (asked, answer) in zip(found, wanted, strict=True):
        assert row.tokens.tolist() == [*asked, *answer, EOT]
        assert row.scored.tolist() == [False] * len(asked) + [True] * (len(answer) + 1)
    with pytest.raises(ValueError) as caught:
        whole.fit(4, Overlong.truncate)
    assert "2 examples of the train split have a response that does not fit into 4 tokens, the longest by 1" in str(
        caught.value
    )


def test_truncate_keeps_what_stands_before_every_text(table):
    rows = [{"text": "alpha beta gamma delta", "answer": "eta", "y": "p"}] * 2
    for form, kept in (
        ({"response": "{answer}"}, slice(-4, None)),
        ({"label_column": "y", "class_names": ["p", "q"]}, slice(0, 4)),
    ):
        data = run(table(rows, **form), WordPieceConfig(vocab_size=60))
        vocab = data.tokenizer
        text = vocab.encode("alpha beta gamma delta").tolist() + (
            vocab.encode("eta").tolist() if "response" in form else []
        )
        (row,) = data.examples["train"].fit(6, Overlong.truncate).gather(np.array([0]))
        assert row.tokens.tolist() == [vocab.cls, *text[kept], vocab.sep]
        assert not row.scored[0] and row.scored[-1]


def test_truncate_keeps_the_last_answer_of_a_conversation(table):
    chat = {"user": "U{content}", "assistant": "A{content}"}
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    whole = run(table([{"m": turns}], messages="m", chat=chat)).examples["train"]
    assert whole.lengths.tolist() == [10]  # U a A b eot U c A d eot
    (row,) = whole.fit(7, Overlong.truncate).gather(np.array([0]))
    assert row.tokens.tolist() == [ord("b"), EOT, *b"UcAd", EOT]
    assert row.scored.tolist() == [True, True, False, False, False, True, True]


def test_pickled_by_name(table):
    rows = [{"text": "abcdefgh" * (1 + n % 3), "y": "p", "n": n} for n in range(3000)]
    whole = run(table(rows, label_column="y", class_names=["p", "q"])).examples["train"]
    fitted = whole.fit(20, Overlong.drop).fit(12, Overlong.truncate)
    for one in (whole, fitted):
        content = pickle.dumps(one)
        assert len(content) < 1500
        other = pickle.loads(content)
        assert len(other) == len(one) and other.lengths.tolist() == one.lengths.tolist()
        a, b = (t.gather(np.arange(0, len(one), 97)) for t in (one, other))
        assert [row.tokens.tolist() for row in a] == [row.tokens.tolist() for row in b]
    assert len(fitted) == 2000 and fitted.lengths.max() == 12


# What is refused


GOOD = {"text": "fine", "y": "p"}
RESPONSE = {"label_column": None, "class_names": [], "response": "{y}"}
CONVERSATION = {"label_column": None, "class_names": [], "messages": "m"}


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        ([GOOD, {"text": "x", "y": "maybe"}], {}, r"record 2 of .*rows\.jsonl has the label 'maybe' in the column y, "
         r"and data\.class_names holds p, q; add it there, or .*data\.drop_unknown_classes=true"),
        ([GOOD, {"text": "x"}], {}, r"data\.label_column=y is not a column of record 2 of .*; it has text"),
        ([{"text": "x", "y": None}], {}, r"record 1 of .* has null in the column y"),
        ([{"body": "x", "y": "p"}], {}, r"data\.prompt has the field .*text\}, which record 1 .* lacks; it has body"),
        ([GOOD, {"text": " \n", "y": "p"}], {}, r"data\.prompt is empty in record 2 of"),
        ([{"text": "x", "y": "r"}], {"drop_unknown_classes": True}, r"has no record with a label of data\.class_names"),
        ([GOOD], {"prompt": "{text.upper}"}, r"data\.prompt='\{text\.upper\}' has the field"),
        ([GOOD], {"val_fraction": 0.5}, r"the table has 1 record, and each of train, val needs one"),
        ([GOOD] * 9, {"val_fraction": 0.5}, r"has 9 records \(1 of them different\), and each of train, val needs one"),
        ([{"text": "x", "y": " "}], RESPONSE, r"response is empty in record 1"),
        ([], {}, r"rows\.jsonl is empty"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_an_example_is_named(table, tmp_path, rows, settings, why):
    with pytest.raises(ValueError, match=why):
        run(table(rows, **{"label_column": "y", "class_names": ["p", "q"], **settings}))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != "fingerprints"] in ([], ["locks"])


def test_drop_unknown_classes_leaves_the_others_out(table):
    rows = [GOOD, {"text": "x", "y": "r"}, {"text": "z", "y": "q"}]
    data = run(table(rows, label_column="y", class_names=["p", "q"], drop_unknown_classes=True))
    assert data.examples["train"].labels.tolist() == [0, 1] and "2 records" in data.description


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "record 1 of .* has no message of the assistant"),
        (CHAT[:2], "record 1 of .* has no message of the assistant"),
        ("Hi", "record 1 of .* holds str in the column m, not a list"),
        ([{"role": "user"}], r"record 1 of .*, message 1, is not a message such as"),
        ([{"role": "user", "content": ["x"]}], r"record 1 of .*, message 1, is not a message such as"),
        ([{"role": "user", "content": " "}], r"record 1 of .*, message 1, has an empty content"),
        ([*CHAT[:3], {"role": "tool", "content": "x"}], r"4, has the role 'tool'; data\.chat has templates for "
         "system, user, assistant"),
    ],
)  # fmt: skip
def test_an_invalid_conversation_is_named(table, messages, why):
    with pytest.raises(ValueError, match=why):
        run(table([{"m": messages}], messages="m"))


@pytest.mark.parametrize("template", ["A:", "{content} {content}", "{text}", "{content}{text}"])
def test_a_turns_template_has_its_content_once(table, template):
    with pytest.raises(ValueError, match=r"data\.chat\.assistant=.* must have the field \{content\} once"):
        run(table([{"m": CHAT}], messages="m", chat={"assistant": template}))


def test_a_response_needs_an_end(table):
    with pytest.raises(ValueError, match=r"tokenizer=char has no end-of-text token, which ends each response"):
        run(table([GOOD], response="{y}"), CharConfig())


def test_text_without_tokens_is_refused(table):
    rows = [GOOD] * 20 + [{"text": "\x07", "y": "p"}]
    with pytest.raises(ValueError, match=r"record 21 of .*: the tokenizer makes no token of '\\x07'"):
        run(table(rows, label_column="y", class_names=["p", "q"]), WordPieceConfig(vocab_size=60))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"path": None}, r"name it with data\.path=FILE, or with data\.dataset=NAME"),
        ({"label_column": None, "class_names": []}, r"one of data\.label_column=COLUMN.*: none is set; set one"),
        ({"response": "{a}"}, r"data\.label_column=y and data\.response=\{a\}; leave one out"),
        ({"class_names": []}, r"data\.class_names=\[\] must list the labels of the column y, at least two"),
        ({"class_names": ["p", "p"]}, r"data\.class_names=.* each once"),
        ({"label_column": None, "response": "{a}"}, r"data\.class_names is set, which data\.response=TEMPLATE does"),
        (RESPONSE | {"drop_unknown_classes": True}, r"data\.drop_unknown_classes is set"),
        ({"chat": {"assistant": "{content}"}}, r"data\.chat is set, which data\.label_column=COLUMN does not use"),
        (CONVERSATION | {"prompt": "x"}, r"data\.prompt is set"),
        (CONVERSATION | {"chat": {"user": "{content}"}}, r"no template for the ass"),
        ({"split": Split.fraction}, r"data\.split=fraction would cut records"),
        ({"stride": 8}, r"data\.stride=8 is for sliding windows"),
        ({"hub_split": "dev"}, r"data\.hub_split=dev is for a data set, and data\.path="),
        ({"subset": "x"}, r"data\.subset=x is for a data set, and data\.path=.*rows\.jsonl is a table"),
    ],
)  # fmt: skip
def test_settings_that_conflict_are_refused(table, settings, why):
    with pytest.raises(ValueError, match=why):
        run(table([GOOD], **{"label_column": "y", "class_names": ["p", "q"], **settings}))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for path, why in (("a.txt", r"is not a table; give a file ending in \.jsonl"), ("no.csv", "does not exist")):
        with pytest.raises(ValueError, match=rf"data\.path=.*{why}"):
            run(TableConfig(path=str(tmp_path / path), response="x"))


@pytest.mark.parametrize("ending", ["folder", ".parquet"])
def test_examples_of_a_data_set(tmp_path, monkeypatch, ending):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    rows = reviews(12)
    saved = datasets.Dataset.from_list(rows)
    path = tmp_path / f"set{ending}"
    saved.save_to_disk(str(path)) if ending == "folder" else saved.to_parquet(str(path))
    settings = {
        "label_column": "mood",
        "class_names": ["good", "bad"],
        "cache_dir": str(tmp_path / "cache"),
        "val_fraction": 0,
    }
    found = examples_of(run(TableConfig(path=str(path), **settings)))
    assert [bytes(row.tokens[:-1].tolist()).decode() for row in found] == [row["text"] for row in rows]
    with pytest.raises(ValueError, match=r"record 1 of data set in .* has the label"):
        run(TableConfig(path=str(path), **{**settings, "class_names": ["x", "y"]}))


def test_text_sources_have_no_examples(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 20)
    data = run(TextConfig(path=str(tmp_path / "a.txt"), cache_dir=str(tmp_path / "cache")))
    assert data.examples == {}


def test_a_tokenizer_without_build_is_refused(table):
    with pytest.raises(NotImplementedError, match="no build method"):
        run(table([GOOD], label_column="y", class_names=["p", "q"]), TokenizerConfig())
