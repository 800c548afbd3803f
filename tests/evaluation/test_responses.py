from collections import Counter
from itertools import pairwise

import pytest
import torch
from torchmetrics.functional.text import rouge as library

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.evaluation.prompts import Example, Prompts
from gptlab.evaluation.responses import Responder, respond_to_all
from gptlab.evaluation.rouge import rouge
from gptlab.generation.beam import beam_search
from gptlab.generation.config import DecodingConfig
from gptlab.generation.decode import generate_tokens
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

GREEDY = DecodingConfig(temperature=0.0)


def greedy(max_new_tokens):
    return DecodingConfig(temperature=0.0, max_new_tokens=max_new_tokens)


@pytest.mark.parametrize(
    "text, reference, expected",
    [
        # 4 of 5 words are in the reference of 6: P 4/5, R 4/6. Pairs: "the cat" and "on the" of 4 and 5. In order:
        # the cat on the, 4 of 5 and of 6.
        ("The cat lay on the", "the cat sat on the mat", (8 / 11, 4 / 9, 8 / 11)),
        # All words but the order: of "b a" and "a b" one word is in order.
        ("b a", "a b", (1.0, 0.0, 0.5)),
        # A word counts as often as it is in both: 1 of 3 and of 2.
        ("no no no", "no, yes!", (2 / 5, 0.0, 2 / 5)),
        ("", "something", (0.0, 0.0, 0.0)),
        ("same text", "Same -- text.", (1.0, 1.0, 1.0)),
    ],
)
def test_rouge_by_hand(text, reference, expected):
    assert tuple(rouge(text, reference).values()) == pytest.approx(expected, abs=1e-6)


def overlap(a, b):
    shared = sum((Counter(a) & Counter(b)).values())
    return 0.0 if not shared else 2 * shared / (len(a) + len(b))


def test_rouge_by_counting():
    draw = torch.Generator().manual_seed(0)
    words = "the a cat dog sat on mat and it was".split()
    for _ in range(30):
        texts = [
            " ".join(words[i] for i in torch.randint(10, (n,), generator=draw).tolist())
            for n in torch.randint(2, 15, (2,), generator=draw).tolist()
        ]
        one, two = (text.split() for text in texts)
        longest = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
        for i, x in enumerate(one):
            for j, y in enumerate(two):
                longest[i + 1][j + 1] = longest[i][j] + 1 if x == y else max(longest[i][j + 1], longest[i + 1][j])
        pairs = [list(pairwise(row)) for row in (one, two)]
        expected = [overlap(one, two), overlap(*pairs), 2 * longest[-1][-1] / (len(one) + len(two))]
        assert list(rouge(*texts).values()) == pytest.approx(expected, abs=1e-6)


def test_rouge_needs_no_download(monkeypatch):
    monkeypatch.setattr(library, "_NLTK_AVAILABLE", False)
    monkeypatch.setattr(library, "_split_sentence", lambda text: pytest.fail("asked for nltk's sentences"))
    assert rouge("a b", "a c")["rouge1"] == pytest.approx(0.5)


def table(n=5, **options):
    rows = [Example(where=f"record {i}", prompt="ask" + "." * i, answer="ab" * (i + 1)) for i in range(n)]
    return Prompts(**{"items": rows, "pool": rows, "pool_name": "FILE", "seed": 1} | options)


@pytest.fixture
def responder(small):
    return Responder(small(context_length=90, seed=2), ByteTokenizer(), {256})


def alone(model, text, n_tokens, stop=()):
    """What the model generates for one prompt by itself."""
    ids = list(text.encode())
    new = generate_tokens(model, torch.tensor([ids]), n_tokens, temperature=0.0, vocab_size=257)[0, len(ids) :].tolist()
    text = bytes(new[: new.index(256)] if 256 in new else new).decode("utf-8", "replace")
    return min((text.split(end)[0] for end in stop), key=len, default=text)


def test_a_batch_gives_the_answers_of_each_prompt_alone(responder, monkeypatch):
    prompts = table()
    texts = [prompts.text(i, 2) for i in range(5)]
    ids = [list(text.encode()) for text in texts]
    whole = responder.respond(ids, GREEDY, max_new_tokens=30)
    assert [text.rstrip("�") for text in whole] == [alone(responder.model, text, 30).rstrip("�") for text in texts]
    stop = next(text[5:7] for text in whole if len(text) > 9)
    assert responder.respond(ids, GREEDY, max_new_tokens=30, stop=[stop]) == [text.split(stop)[0] for text in whole]
    drawn = DecodingConfig(temperature=1.0, top_k=20)
    first = responder.respond(ids, drawn, max_new_tokens=12, seed=3)
    monkeypatch.setattr("gptlab.generation.text.BATCH_TOKENS", 60)
    assert responder.respond(ids, GREEDY, max_new_tokens=30) == whole
    assert (
        responder.respond(ids, drawn, max_new_tokens=12, seed=3)
        == first
        != responder.respond(ids, drawn, max_new_tokens=12, seed=4)
    )


def test_beams(responder):
    ids = list(b"ask")
    best = beam_search(responder.model, ids, 12, num_beams=3, vocab_size=257, ends=lambda tokens: tokens[-1] == 256)[0]
    text = responder.respond([ids], DecodingConfig(num_beams=3), max_new_tokens=12)[0]
    assert text == bytes(token for token in best.tokens if token != 256).decode("utf-8", "replace")


def test_scores_of_each_number_of_examples_and_setting(responder):
    prompts = table()
    settings = {
        "temperature=0": DecodingConfig(temperature=0.0, max_new_tokens=9),
        "num_beams=2": DecodingConfig(num_beams=2, max_new_tokens=9),
    }
    texts = {n: [alone(responder.model, prompts.text(i, n), 9, ["\n\n"]).strip() for i in range(5)] for n in (0, 1)}
    prompts.items[3].answer = texts[0][3]  # one that is met
    prompts.pool = table().items
    found = respond_to_all(responder, prompts, [0, 1], settings)
    keys = ("rouge1", "rouge2", "rougeL", "exact_match")
    names = {f"num_fewshot={n}/{name}/{key}" for n in (0, 1) for name in settings for key in keys}
    assert set(found["numbers"]) == names
    for n in (0, 1):
        answers = [entry for row in found["samples"] for entry in row["answers"]]
        answers = [entry for entry in answers if entry["num_fewshot"] == n and entry["setting"] == "temperature=0"]
        assert [entry["text"] for entry in answers] == texts[n]
        for key in keys:
            mean = sum(entry[key] for entry in answers) / 5
            assert found["numbers"][f"num_fewshot={n}/temperature=0/{key}"] == pytest.approx(mean)
    assert found["numbers"]["num_fewshot=0/temperature=0/exact_match"] == 1 / 5
    assert [row["reference"] for row in found["samples"]] == [row.answer for row in prompts.items]


def test_an_answer_ends_where_the_next_example_would_begin(small):
    responder = Responder(small(vocab_size=8, context_length=90, seed=2), CharTokenizer("\n .abks"), frozenset())
    prompts = table(separator="k")
    found = respond_to_all(responder, prompts, [0], {"temperature=0": greedy(30)})
    whole = respond_to_all(responder, prompts, [0], {"temperature=0": greedy(30)}, stop=())
    texts = [[row["answers"][0]["text"] for row in result["samples"]] for result in (found, whole)]
    assert texts[0] == [text.split("k")[0].strip() for text in texts[1]]
    assert any("k" in text for text in texts[1])


def test_a_setting_has_a_length_of_its_own_and_results_come_setting_by_setting(responder):
    prompts, parts = table(), []
    settings = {"short": greedy(3), "long": greedy(11)}
    found = respond_to_all(
        responder, prompts, [0], settings, stop=(), on_part=lambda found: parts.append(len(found["numbers"]))
    )
    for i, sample in enumerate(found["samples"]):
        expected = [alone(responder.model, prompts.text(i, 0), n).strip() for n in (3, 11)]
        assert [answer["text"] for answer in sample["answers"]] == expected
    assert parts == [4, 8]


def test_refused_before_any_work(responder, monkeypatch):
    monkeypatch.setattr(Responder, "respond", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(
        ValueError,
        match=r"record 0 with num_fewshot=4 .* the context of 90 holds; every prompt fits with",
    ):
        respond_to_all(responder, table(), [0, 4], {"temperature=0": greedy(45)})


def test_an_encoder_decoder_answers_prompts_of_any_length():
    tokenizer = ByteTokenizer()
    model = build_model(EncoderDecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=8), 257, seed=1).eval()
    prompts = table(3)
    found = respond_to_all(Responder(model, tokenizer, {256}), prompts, [2], {"temperature=0": greedy(6)}, stop=())
    for i, row in enumerate(found["samples"]):
        source = torch.tensor([[*prompts.text(i, 2).encode(), 256]])
        ids = generate_tokens(model, source, 6, temperature=0.0, vocab_size=257)[0].tolist()
        ids = ids[: ids.index(256)] if 256 in ids else ids
        assert row["answers"][0]["text"] == bytes(ids).decode("utf-8", "replace").strip()
