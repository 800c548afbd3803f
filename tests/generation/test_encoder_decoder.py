"""Generation with T5: the decoder's text for what the encoder reads."""

import json

import pytest
import torch
import transformers
from interop.external import T5S, VOCAB_SIZE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from gptlab.cli.generate import main
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.generation.beam import beam_search
from gptlab.generation.config import Precision
from gptlab.generation.decode import decode, generate_tokens, seeded
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.precision import prepare
from gptlab.generation.prompt import beyond_training
from gptlab.generation.sampling import Sampling
from gptlab.generation.speculative import speculate
from gptlab.generation.text import generate
from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

PROMPTS = [[5, 9, 33, 2, 40, 8, 21, 1], [7, 1], [30, 31, 32, 1]]


@pytest.fixture(params=["t5 few buckets", "t5 tied, not scaled", "t5 1.1"])
def pair(request, tmp_path):
    theirs = T5S[request.param].model()
    with torch.no_grad():  # or the most likely token would be the same at each step
        theirs.shared.weight *= 0.3
        for name, parameter in theirs.named_parameters():
            parameter *= 30 if "relative_attention_bias" in name else 1
    theirs.save_pretrained(tmp_path / "theirs")
    folder = TransformersFolder(tmp_path / "theirs")
    ours = build_model(folder.config, folder.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(folder.tensors()))
    return theirs, ours


@pytest.fixture
def ours(pair):
    return pair[1]


def padded():
    longest = max(map(len, PROMPTS))
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in PROMPTS])
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


def drawn(state, n_tokens, sampling, **options):
    rows = [[] for _ in state.sequences]
    for draws in decode(state, n_tokens, sampling, **options):
        for draw in draws:
            rows[draw.index].append(draw.token)
    return rows


@pytest.mark.parametrize("penalty", [1.0, 1.7])  # with one the text does not run into a circle
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_equals_transformers(pair, cached, penalty):
    theirs, ours = pair
    n_tokens = 530 if cached else 30  # beyond the context, which relative positions do not know
    how = {"do_sample": False, "eos_token_id": None, "repetition_penalty": penalty}
    expected = theirs.generate(**padded(), max_new_tokens=n_tokens, **how).tolist()
    state = DecodingState(ours, PROMPTS, n_more=n_tokens, cached=cached)
    rows = drawn(state, n_tokens, Sampling(temperature=0.0, repetition_penalty=penalty))
    assert [[0, *row] for row in rows] == expected
    assert penalty == 1 or len({token for row in rows for token in row}) > 8


def test_rows_end_one_by_one(pair):
    theirs, ours = pair
    ends = {3, 17, 44, 21, 8, 29}
    expected = theirs.generate(**padded(), max_new_tokens=25, do_sample=False, eos_token_id=[*ends], pad_token_id=0)
    state = DecodingState(ours, PROMPTS, n_more=25)
    rows = drawn(state, 25, Sampling(temperature=0.0), ends=lambda row, token: token in ends)
    for row, theirs_row in zip(rows, expected.tolist(), strict=True):
        assert row == theirs_row[1 : 1 + len(row)] and not any(theirs_row[1 + len(row) :])


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
@pytest.mark.parametrize("num_beams, num_return_sequences", [(2, 1), (5, 4)])
def test_beam_search_equals_transformers(pair, length_penalty, num_beams, num_return_sequences):
    theirs, ours = pair
    for prompt in PROMPTS:
        for eos in (None, 5, 11):
            expected = theirs.generate(
                torch.tensor([prompt]),
                do_sample=False,
                num_beams=num_beams,
                num_return_sequences=num_return_sequences,
                length_penalty=length_penalty,
                max_new_tokens=12,
                eos_token_id=eos,
                output_scores=True,
                return_dict_in_generate=True,
            )
            found = beam_search(
                ours,
                prompt,
                12,
                num_beams=num_beams,
                num_return_sequences=num_return_sequences,
                length_penalty=length_penalty,
                ends=lambda tokens, eos=eos: tokens[-1] == eos,
            )
            for beam, sequence, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
                assert beam.tokens == sequence[1 : 1 + len(beam.tokens)].tolist()
                assert beam.score == pytest.approx(score.item(), abs=1e-4)


def test_the_encoder_runs_once(ours, monkeypatch):
    calls = []
    ours.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    for block in ours.decoder.blocks:
        block.cross.k.register_forward_hook(lambda *_: calls.append("keys"))
    drawn(DecodingState(ours, PROMPTS, n_more=9), 9, Sampling(temperature=0.0))
    assert calls == ["encoder", *["keys"] * len(ours.decoder.blocks)]


def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(ours):
    sampling = Sampling(temperature=0.7, top_k=20)
    together = drawn(DecodingState(ours, PROMPTS, n_more=20), 20, sampling, generators=seeded(3, 3))
    for cached in (True, False):
        for row, prompt in enumerate(PROMPTS):
            own = [seeded(3, 3)[row]]
            alone = drawn(DecodingState(ours, [prompt], n_more=20, cached=cached), 20, sampling, generators=own)
            assert alone == [together[row]]


@pytest.mark.parametrize("precision", Precision)
def test_precisions(pair, precision):
    theirs, ours = pair
    reference = theirs(**padded(), decoder_input_ids=torch.zeros((3, 1), dtype=torch.int64)).logits[:, 0]
    state = DecodingState(prepare(ours, precision, torch.device("cpu")), PROMPTS, n_more=4)
    near = {Precision.float32: 1e-4, Precision.bfloat16: 0.15, Precision.int8: 0.2}[precision]
    assert (state.logits.float() - reference).abs().max() <= near * reference.abs().max()
    assert len(drawn(state, 4, Sampling(temperature=0.0))[0]) == 4


def test_a_draft_model_changes_nothing_at_temperature_zero(ours):
    draft = build_model(ours.config, VOCAB_SIZE, seed=5).eval()
    greedy = Sampling(temperature=0.0)
    expected = drawn(DecodingState(ours, PROMPTS[:1], n_more=20), 20, greedy)[0]
    assert [one.token for one in speculate(ours, draft, PROMPTS[0], 20, greedy)] == expected


def test_a_given_context_length_is_used(ours):
    states = [DecodingState(ours, PROMPTS, n_more=30, context_length=8, cached=cached) for cached in (True, False)]
    rows = [drawn(state, 30, Sampling(temperature=0.0)) for state in states]
    assert rows[0] == rows[1] != drawn(DecodingState(ours, PROMPTS, n_more=30), 30, Sampling(temperature=0.0))


def test_from_python(ours):
    answers = generate_tokens(ours, torch.tensor([PROMPTS[0]]), 6, temperature=0.0)
    assert answers.tolist() == drawn(DecodingState(ours, PROMPTS[:1], n_more=6), 6, Sampling(temperature=0.0))


@pytest.fixture
def folder(tmp_path):
    """A T5 with a tokenizer like its own: words with a mark for the space before, and a text ends with </s>."""
    path = T5S["t5 1.1"].save(tmp_path / "t5")
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words += [(f"\u2581{chr(97 + i)}{chr(97 + j)}", -2.0) for i in range(7) for j in range(8)] + [("\u2581", -3.0)]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in ("<pad>", "</s>", "<unk>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


def test_the_command(folder, capsys):
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = "aa bc gh ea"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0, -1] == 1
    never = list(range(len(tokenizer), VOCAB_SIZE))
    for beams in (1, 3):
        options = [f"num_beams={beams}"] if beams > 1 else ["temperature=0"]
        assert main([f"run={folder}", f"prompt={prompt}", "max_new_tokens=12", "output=json", *options]) == 0
        (answer,) = json.loads(capsys.readouterr().out)["results"]
        (expected,) = theirs.generate(
            ids, max_new_tokens=12, do_sample=False, num_beams=beams, suppress_tokens=never or None
        ).tolist()
        assert answer["tokens"] == expected[1:]
        assert answer["text"] == tokenizer.decode(answer["tokens"], skip_special_tokens=True)
    assert main([f"run={folder}", f"prompt={prompt}", "max_new_tokens=12", "temperature=0"]) == 0
    assert prompt not in capsys.readouterr().out


def test_what_cannot_write_is_refused(folder, tmp_path, capsys):
    from interop.external import BERTS, CASES

    for name, case in (("bert", BERTS["bert"]), ("gpt2", CASES["gpt2"])):
        case.save(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert main([f"run={tmp_path / 'bert'}", "prompt=aa"]) == 2
    assert "is a model of type encoder, which generates no text" in capsys.readouterr().err
    assert main([f"run={folder}", f"draft_model={tmp_path / 'gpt2'}", "prompt=aa"]) == 2
    assert (
        "is a causal model and the model a encoder_decoder one; use two of the same capability"
        in capsys.readouterr().err
    )


def test_a_prompt_beyond_the_training_length_is_answered_with_a_warning():
    model = build_model(EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=8), 257, seed=0).eval()
    assert beyond_training([[1] * 8], model) is None
    assert "the prompt has 9 tokens, and the model was trained on texts of up to 8" in str(
        beyond_training([[1] * 9], model)
    )
    assert "2 of 3 prompts are longer than 8 tokens, the longest has 30" in str(
        beyond_training([[1] * 9, [1], [1] * 30], model)
    )
    with pytest.warns(UserWarning, match="the prompt has 21 tokens, .* shorten it"):
        generate(model, ByteTokenizer(), "a" * 20, max_new_tokens=1)
    with pytest.warns(UserWarning, match="2 of 2 prompts"):
        generate(model, ByteTokenizer(), ["a" * 20, "b" * 20], max_new_tokens=1)
