"""Filled masks and embeddings, compared with transformers on random weights."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptlab import UserError
from gptlab.cli import embed as embed_command
from gptlab.cli import fill_mask as fill_mask_command
from gptlab.cli.main import VERBS
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.generation.embedding import Pooling, cosine_similarity, embed
from gptlab.generation.fill_mask import fill_mask
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs.load import load_model

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat lay on a mat ##s ##ting .".split()
TEXTS = ["the cat sat on the mat.", "a dogs lay", "the mat"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A transformers folder with a BERT of random weights, its model and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert model")
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(WORDS[:5])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        mask_token="[MASK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    model = transformers.BertForPreTraining(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def ours(bert):
    model, tokenizer, _ = load_model(str(bert[0]))
    return model, tokenizer


@pytest.mark.parametrize("text", ["the [MASK] sat on a mat.", "[MASK] cat[MASK] on [MASK]", "<mask>"])
def test_masks_are_filled_as_by_transformers(bert, ours, text):
    _, theirs, tokenizer = bert
    inputs = tokenizer(text.replace("<mask>", "[MASK]"), return_tensors="pt")
    with torch.no_grad():
        probabilities = torch.softmax(theirs(input_ids=inputs["input_ids"]).prediction_logits[0], -1)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    found = fill_mask(*ours, text, top_k=3)
    assert len(found) == len(places) > 0
    for mask, place in zip(found, places, strict=True):
        best = probabilities[place].topk(3)
        assert [one.token for one in mask] == best.indices.tolist()
        assert [one.probability for one in mask] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [one.text for one in mask] == [WORDS[one.token] for one in mask]


def test_the_text_with_the_token(ours):
    for mask in fill_mask(*ours, "cat [MASK] and [MASK]", top_k=len(WORDS))[:1]:
        for one in mask:
            joined = f"cat{one.text[2:]}" if one.text.startswith("##") else f"cat {one.text}"
            assert one.sequence == f"{joined} and [MASK]"


def test_embeddings_are_those_of_transformers(bert, ours):
    _, theirs, tokenizer = bert
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = theirs.bert(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    mask = inputs["attention_mask"][..., None].float()
    mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(embed(*ours, TEXTS), mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        embed(*ours, TEXTS, pooling=Pooling.cls), out.last_hidden_state[:, 0], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(embed(*ours, TEXTS, pooling=Pooling.pooler), out.pooler_output, atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.cosine_similarity(mean[:, None], mean[None], dim=-1)
    torch.testing.assert_close(cosine_similarity(mean), expected, atol=1e-5, rtol=1e-5)


def test_a_vector_does_not_depend_on_the_rest_of_the_batch(ours, monkeypatch):
    together = embed(*ours, TEXTS)
    monkeypatch.setattr("gptlab.generation.embedding.BATCH_TOKENS", 1)
    torch.testing.assert_close(embed(*ours, TEXTS), together, atol=1e-5, rtol=1e-5)


def test_a_causal_model_embeds_by_mean_or_last_token():
    config = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=8, init_std=0.5)
    model, tokenizer = build_model(config, 257, seed=0).eval(), ByteTokenizer()
    states = [model.hidden_states(torch.tensor([list(text.encode())]))[0] for text in ("abc", "de")]
    mean = torch.stack([state.mean(0) for state in states])
    last = torch.stack([state[-1] for state in states])
    torch.testing.assert_close(embed(model, tokenizer, ["abc", "de"]), mean.detach())
    torch.testing.assert_close(embed(model, tokenizer, ["abc", "de"], pooling=Pooling.last), last.detach())
    for options, message in (
        ({"texts": ["x" * 9]}, "the text has 9 tokens and the model's context holds 8"),
        ({"texts": ["a", ""]}, "text 2 of 2 is empty"),
        ({"texts": ["a"], "pooling": Pooling.cls}, "pooling=cls is the first token's state"),
        ({"texts": ["a"], "pooling": Pooling.pooler}, "pooling=pooler needs a model that was trained with a pooler"),
    ):
        with pytest.raises(UserError, match=message):
            embed(model, tokenizer, **options)
    with pytest.raises(UserError, match="fills no masks; use an encoder"):
        fill_mask(model, tokenizer, "[MASK]")
    with pytest.raises(UserError, match="use an encoder or a causal model"):
        embed(build_model(EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8), 257, seed=0), tokenizer, ["a"])


def test_what_cannot_be_filled_is_refused(ours):
    with pytest.raises(UserError, match=r"the text has no mask; write \[MASK\] where a token is wanted"):
        fill_mask(*ours, "the cat")
    with pytest.raises(UserError, match="the text has 17 tokens and the model's context holds 16"):
        fill_mask(*ours, "the " * 14 + "[MASK]")
    encoder = build_model(EncoderConfig(n_layer=1, n_head=2, d_model=8, heads=Heads.masked_lm), 257, seed=0)
    with pytest.raises(UserError, match="the model's tokenizer has no mask token"):
        fill_mask(encoder, ByteTokenizer(), "[MASK]")


def test_the_commands(bert, ours, capsys):
    run = f"run={bert[0]}"
    assert {"fill-mask", "embed"} <= VERBS.keys()
    assert fill_mask_command.main([run, "text=the [MASK] sat", "text=a [MASK] [MASK]", "top_k=2"]) == 0
    out = capsys.readouterr().out
    first = fill_mask(*ours, "the [MASK] sat")[0][0]
    assert f"{100 * first.probability:6.2f}%  {first.text!r}" in out and first.sequence in out
    assert out.count("--- ") == 3 and "--- a [MASK] [MASK], mask 2\n" in out
    assert fill_mask_command.main([run, "text=the [MASK]", "output=json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert len(result["masks"][0]) == 5 and set(result["masks"][0][0]) == {"token", "text", "probability", "sequence"}
    assert embed_command.main([run, *(f"text={text}" for text in TEXTS)]) == 0
    similarity = cosine_similarity(embed(*ours, TEXTS))
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["3", *(f"{value:.4f}" for value in similarity[2].tolist())]
    assert embed_command.main([run, *(f"text={text}" for text in TEXTS), "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    torch.testing.assert_close(torch.tensor(found["cosine_similarity"]), similarity, atol=1e-5, rtol=1e-5)
    assert [one["text"] for one in found["results"]] == TEXTS and len(found["results"][0]["embedding"]) == 16
    assert embed_command.main([run, "text=the cat"]) == 0
    assert capsys.readouterr().out.startswith("16 dimensions, norm ")
    for command, options, message in (
        (fill_mask_command, [], "gptlab fill-mask needs run=PATH"),
        (fill_mask_command, ["top_k=0"], "top_k=0 must be at least 1"),
        (fill_mask_command, ["text=none"], "the text has no mask"),
        (fill_mask_command, ["prompt=x"], "unknown option prompt of gptlab fill-mask; did you mean text?"),
        (embed_command, ["text=x", "pooling=max"], "pooling=max is unknown; known: mean, cls, last, pooler"),
    ):
        arguments = options if message.startswith("gptlab") else [run, *options]
        assert command.main(arguments or ["text=x"]) == 2
        assert message in capsys.readouterr().err
