import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import write_run

from gptlab.cli import convert
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.sources.config import TextConfig
from gptlab.data.sources.text import open_text
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.evaluation.perplexity import EncodedText, encode, perplexity
from gptlab.generation.scoring import strided_nats, token_nats
from gptlab.runs.load import load_model

CONTEXT = 12


@pytest.fixture
def ids():
    return torch.randint(257, (131,), generator=torch.Generator().manual_seed(0)).numpy()


@pytest.mark.parametrize("stride", [1, 2, 5, 11, 12])
def test_each_token_once_with_context_minus_stride_before_it(small, ids, stride, monkeypatch):
    """Held against one forward pass a token, for every length of a last window and with batches of several sizes."""
    model = small()
    for n in (*range(2, 30), len(ids)):
        monkeypatch.setattr("gptlab.generation.scoring.BATCH_TOKENS", 12 * (1 + n % 4))
        nats = torch.cat(list(strided_nats(model, ids[:n], stride=stride)))
        assert len(nats) == n - 1
        for i, value in enumerate(nats.tolist(), 1):
            end = CONTEXT if i <= CONTEXT else CONTEXT + math.ceil((i - CONTEXT) / stride) * stride
            start = max(0, end - CONTEXT)
            assert i - start >= min(i, CONTEXT - stride) and i - start <= CONTEXT
            if n in (2, 13, 14, 29, len(ids)) and i % 3 == 0:
                with torch.no_grad():
                    log_p = torch.log_softmax(model(torch.tensor(ids[None, start:i]))[0, -1], -1)
                assert value == pytest.approx(-log_p[ids[i]].item(), abs=1e-4)


def test_a_stride_of_the_context_is_the_windows_of_validation(small, ids):
    model, total = small(), 0.0
    windows = SlidingWindows(ids, CONTEXT, CONTEXT)
    for batch in (windows.gather(np.arange(len(windows))), windows.tail()):
        tokens = torch.as_tensor(batch)
        with torch.no_grad():
            logits = model(tokens[:, :-1]).flatten(0, 1)
        total += F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").item()
    text = EncodedText(tokens=ids, n_bytes=131, description="ids")
    found = perplexity(model, ByteTokenizer(), text, stride=CONTEXT)
    assert found["loss"] == pytest.approx(total / 130, rel=1e-6) and found["n_tokens"] == 130


def test_half_the_context_is_the_default_as_in_scoring(small, ids):
    model, text = small(), EncodedText(tokens=ids, n_bytes=131, description="ids")
    found, nats = perplexity(model, ByteTokenizer(), text), token_nats(model, ids)
    assert found["stride"] == CONTEXT // 2
    assert found["loss"] == pytest.approx(sum(nats) / 130, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / 130), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 131, rel=1e-6)


def test_a_shorter_context_than_the_models(small, ids):
    model, text = small(), EncodedText(tokens=ids, n_bytes=131, description="ids")
    found = perplexity(model, ByteTokenizer(), text, stride=1, context_length=1)
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor(ids[:-1, None]))[:, 0], -1)
    assert found["loss"] == pytest.approx(-log_p[range(130), ids[1:]].mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"stride=13 is more than the context of 12.*use stride=12"):
        perplexity(model, ByteTokenizer(), text, stride=13)


def test_documents_are_divided_as_training_divides_them(tmp_path):
    (tmp_path / "a.txt").write_text("naïve")
    (tmp_path / "b.txt").write_text("two")
    corpus = open_text(TextConfig(path=str(tmp_path)))
    text = encode(corpus, ByteTokenizer())
    assert text.tokens.tolist() == [*"naïve".encode(), 256, *b"two"] and text.n_bytes == 9
    assert encode(corpus, CharTokenizer("aenotvwï")).tokens.tolist() == [2, 0, 7, 5, 1, 4, 6, 3]  # no end of text
    with pytest.raises(ValueError, match=r"b.txt: character 't' .* is not among the 5 characters"):
        encode(corpus, CharTokenizer("aenvï"))


def test_the_first_token_is_predicted_where_the_tokenizer_has_a_beginning(small):
    import tokenizers

    library = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, []))
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model, tokenizer = small(vocab_size=4), FileTokenizer(library.to_str())
    text = EncodedText(tokens=tokenizer.encode("ab"), n_bytes=2, description="ab")
    found = perplexity(model, tokenizer, text)
    assert found["n_tokens"] == 2 and found["loss"] == pytest.approx(sum(token_nats(model, [0, 2, 3])) / 2)
    with pytest.raises(ValueError, match="a: there is no token to predict; give a longer text"):
        perplexity(
            small(vocab_size=3), CharTokenizer("abc"), EncodedText(tokens=np.array([0]), n_bytes=1, description="a")
        )


def test_equals_the_usual_loop_over_an_exported_model(tmp_path):
    """The strided windows of the guide to perplexity in the transformers library, with labels of -100 for the past."""
    import transformers

    words = "the cat sat on the mat and then the dog came over it was not so good for that cat " * 9
    run = write_run(tmp_path / "run", tokenizer=BPETokenizer.train(290, [words]), context_length=24)
    assert convert.main([f"from={run}", f"to={tmp_path / 'out'}"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(words)["input_ids"])
    stride, total, n_tokens, done = 7, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + 24, len(ids))
        labels = ids[begin:end].clone()
        labels[: -(end - done)] = -100
        n_new = int((labels[1:] != -100).sum())
        with torch.no_grad():
            total += theirs(ids[None, begin:end], labels=labels[None]).loss.item() * n_new
        n_tokens, done = n_tokens + n_new, end
        if end == len(ids):
            break
    model, tokenizer, _ = load_model(str(run))
    ours = EncodedText(tokens=tokenizer.encode(words), n_bytes=len(words), description="words")
    found = perplexity(model, tokenizer, ours, stride=stride)
    # Their window holds the target among its 24 tokens, ours holds 24 before it: nearly the same windows, and the very
    # same where ours are made one token shorter.
    same = perplexity(model, tokenizer, ours, stride=stride, context_length=23)
    assert n_tokens == same["n_tokens"] == found["n_tokens"]
    assert same["loss"] == pytest.approx(total / n_tokens, rel=1e-5) != found["loss"]
