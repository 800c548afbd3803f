"""Text in, text out, with any causal model."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.errors import UserError
from gptlab.generation import text as generation
from gptlab.generation.beam import beam_search
from gptlab.generation.config import Precision
from gptlab.generation.decode import generate_tokens
from gptlab.generation.decoding_state import DecodingState, window_start
from gptlab.generation.precision import prepare
from gptlab.generation.scoring import token_nats
from gptlab.generation.text import generate
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability, ModelConfig
from gptlab.nn.loss import LMHead

TOKENIZER = ByteTokenizer()


@dataclass(kw_only=True, slots=True)
class GRUConfig(ModelConfig):
    type: str = "gru"


class GRU(LanguageModel):
    """A causal language model that is not a transformer and has no cache."""

    def __init__(self, vocab_size=257, context_length=12):
        super().__init__(GRUConfig(context_length=context_length, d_model=16))
        self.tok_emb = nn.Embedding(vocab_size, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.blocks = [self.rnn]
        self.lm_head = nn.Linear(16, vocab_size, bias=False)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7, generator=generator)

    def hidden_states(self, tokens, *, attention_mask=None, **inputs):
        return self.rnn(self.tok_emb(tokens))[0]

    @property
    def head(self):
        return LMHead(self.lm_head.weight)


def greedy(model, prompt, n):
    """Spelled out: each token is the argmax after its window, read whole."""
    tokens = list(prompt)
    for _ in range(n):
        window = tokens[window_start(len(tokens), model.config.context_length) :]
        tokens.append(int(model(torch.tensor([window]))[0, -1, :257].argmax()))
    return tokens[len(prompt) :]


def test_a_model_without_a_cache_decodes_also_past_its_context():
    model, prompts = GRU(), ["a", "some text", "wide"]
    found = generate(model, TOKENIZER, prompts, max_new_tokens=40, temperature=0, end_ids=())
    assert [result.tokens for result in found] == [greedy(model, prompt.encode(), 40) for prompt in prompts]
    (drafted,) = generate(
        model, TOKENIZER, "wide", max_new_tokens=40, temperature=0, end_ids=(), draft_model=GRU(context_length=7)
    )
    assert drafted.tokens == found[2].tokens
    (best,) = generate(model, TOKENIZER, "wide", num_beams=1, max_new_tokens=20, end_ids=())
    assert best.tokens == found[2].tokens[:20]
    quantized = prepare(GRU(), Precision.int8, torch.device("cpu"))
    state, exact = DecodingState(quantized, [[1, 2]]).logits.float(), model(torch.tensor([[1, 2]]))[:, -1]
    assert (state - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_model_without_a_cache_scores_a_text():
    model, ids = GRU(context_length=64), list(b"some text")
    log_p = torch.log_softmax(model(torch.tensor([ids]))[0], -1)
    assert token_nats(model, ids) == pytest.approx(
        [-log_p[i, token].item() for i, token in enumerate(ids[1:])], abs=1e-4
    )


def test_one_prompt_gives_the_text_that_follows(small):
    model = small(vocab_size=257)
    (result,) = generate(model, TOKENIZER, "ab", max_new_tokens=9, temperature=0, end_ids=())
    expected = generate_tokens(model, torch.tensor([list(b"ab")]), 9, temperature=0.0)[0, 2:].tolist()
    assert result.tokens == expected and str(result) == result.text == TOKENIZER.decode(expected)
    assert result.prompt == "ab" and result.finished == "length"


def test_results_come_in_the_order_of_the_prompts_and_do_not_depend_on_the_batch(small, monkeypatch):
    model, prompts = small(vocab_size=257), ["a", "bcd", "ef"]
    options = {"num_return_sequences": 2, "max_new_tokens": 15, "seed": 3, "top_k": 50}
    found = generate(model, TOKENIZER, prompts, **options)
    assert [result.prompt for result in found] == ["a", "a", "bcd", "bcd", "ef", "ef"]
    assert [(result.prompt_index, result.sequence_index) for result in found] == [
        (i, j) for i in range(3) for j in (0, 1)
    ]
    monkeypatch.setattr(generation, "BATCH_TOKENS", 40)  # two sequences at a time
    again = generate(model, TOKENIZER, prompts, **options)
    assert [result.tokens for result in again] == [result.tokens for result in found]
    other = generate(model, TOKENIZER, prompts, **options | {"seed": 4})
    assert [result.tokens for result in other] != [result.tokens for result in found]


@pytest.mark.parametrize("options", [{"seed": 1}, {"num_beams": 3}], ids=str)
def test_pieces_add_up_to_the_text(small, options):
    pieces = {}

    def on_text(result, piece):
        assert id(result) not in pieces or not pieces[id(result)][1]
        before = pieces.get(id(result), ("", False))[0]
        pieces[id(result)] = before + piece, result.finished is not None

    found = generate(
        small(vocab_size=257),
        TOKENIZER,
        ["ab", "c"],
        num_return_sequences=2,
        max_new_tokens=12,
        on_text=on_text,
        **options,
    )
    assert [pieces[id(result)] for result in found] == [(result.text, True) for result in found]


def test_end_and_stop(small):
    model = small(vocab_size=257)
    (whole,) = generate(model, TOKENIZER, "ab", max_new_tokens=12, temperature=0, end_ids=())
    (ended,) = generate(model, TOKENIZER, "ab", max_new_tokens=12, temperature=0, end_ids={whole.tokens[5]})
    first = whole.tokens.index(whole.tokens[5])
    assert ended.tokens == whole.tokens[: first + 1] and ended.finished == "end_of_text"
    stop = whole.text[2:4]
    (stopped,) = generate(model, TOKENIZER, "ab", max_new_tokens=12, temperature=0, end_ids=(), stop=stop)
    assert stopped.text == whole.text.split(stop)[0] and stopped.finished == "stop"


def test_beams_are_those_of_the_search(small):
    model = small(vocab_size=257)
    found = generate(model, TOKENIZER, "ab", num_beams=4, num_return_sequences=2, max_new_tokens=6, end_ids=())
    expected = beam_search(model, list(b"ab"), 6, num_beams=4, num_return_sequences=2)
    assert [(result.tokens, result.score) for result in found] == [(beam.tokens, beam.score) for beam in expected]


def test_training_mode_is_restored(small):
    model = small(vocab_size=257, dropout=0.5).train()
    one, two = (generate(model, TOKENIZER, "ab", temperature=0, max_new_tokens=9)[0].tokens for _ in range(2))
    assert one == two and model.training and all(block.training for block in model.blocks)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"top_p": 2.0}, r"top_p=2.0 is outside \(0, 1\]"),
        ({"num_beams": 2, "num_return_sequences": 3}, "raise num_beams"),
        ({"num_beams": 2, "top_k": 3}, "top_k= has no effect on beam search"),
        ({"stop": ""}, "stop has an empty text"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(small, options, message):
    with pytest.raises(UserError, match=message):
        generate(small(vocab_size=257), TOKENIZER, "ab", **options)


def test_prompts_and_drafts_that_cannot_be_used(small):
    model = small(vocab_size=257)
    with pytest.raises(UserError, match="prompt 2 of 2 is empty"):
        generate(model, TOKENIZER, ["a", ""])
    with pytest.raises(
        UserError, match="the prompt has 13 tokens and the model's context holds 12; leave out at least 1"
    ):
        generate(model, TOKENIZER, "x" * 13)
    with pytest.raises(UserError, match="the prompt: character 'x'"):
        generate(small(vocab_size=3), CharTokenizer("abc"), "x")
    with pytest.raises(UserError, match="a vocabulary of 31 and the model one of 257"):
        generate(model, TOKENIZER, "a", draft_model=small())
    bidirectional = GRU()
    bidirectional.config = Bidirectional()
    with pytest.raises(UserError, match="generates no text; use a model with one of the capabilities causal"):
        generate(bidirectional, TOKENIZER, "a")
    with pytest.raises(UserError, match="use two of the same capability"):
        generate(model, TOKENIZER, "a", draft_model=bidirectional)


@dataclass(kw_only=True, slots=True)
class Bidirectional(GRUConfig):
    @property
    def capabilities(self):
        return frozenset({Capability.bidirectional})


class Adapter(nn.Linear):
    """As an adapter library makes it: a linear layer that adds something of its own."""

    def forward(self, x):
        return super().forward(x) + 1.0


@pytest.mark.parametrize("precision", Precision)
def test_hooks_and_adapters_on_projections_work_in_generation(small, precision):
    def logits(change):
        model = small(vocab_size=257, d_model=32)
        change(model.blocks[0].attn)
        prepared = prepare(model, precision, torch.device("cpu"))
        return DecodingState(prepared, [[1, 2, 3]]).append([4]).float()

    def hooked(attention):
        attention.v.register_forward_hook(lambda module, args, output: calls.append(1) or output + 1.0)

    def adapted(attention):
        adapter = Adapter(32, 32)
        adapter.load_state_dict(attention.v.state_dict())
        attention.v = adapter

    calls = []
    plain = logits(lambda attention: attention.register_module("unused", None))
    changed = logits(hooked)
    assert len(calls) == 2  # the prompt and the new token
    near = {Precision.float32: 1e-4, Precision.bfloat16: 0.1, Precision.int8: 0.2}[precision]
    assert (changed - plain).abs().max() > near * plain.abs().max()
    assert (changed - logits(adapted)).abs().max() <= near * plain.abs().max()
