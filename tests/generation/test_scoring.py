import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_run

from gptlab.data.prepare import prepare
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.generation.scoring import score, token_nats
from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig
from gptlab.runs import checkpoint
from gptlab.training.loop import train

CONTEXT = 12


def test_equals_the_training_loss_within_one_window(small):
    model = small()
    windows = torch.randint(31, (1, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(windows[:, :-1])[0], windows[0, 1:], reduction="sum")
    assert sum(token_nats(model, windows[0].tolist())) == pytest.approx(loss.item(), rel=1e-5)


def test_each_token_once_with_at_least_half_a_context(small):
    model = small()
    ids = torch.randint(31, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for n in (2, 12, 13, 14, 19, 20, 60):
        nats = token_nats(model, ids[:n])
        assert len(nats) == n - 1
        for i, value in enumerate(nats, 1):
            done = 0 if i <= CONTEXT else CONTEXT + (i - CONTEXT - 1) // (CONTEXT // 2) * (CONTEXT // 2)
            start = 0 if done == 0 else done - CONTEXT // 2
            assert i <= CONTEXT or i - start > CONTEXT // 2
            log_p = torch.log_softmax(model(torch.tensor([ids[start:i]]))[0, -1], -1)
            assert value == pytest.approx(-log_p[ids[i]].item(), abs=1e-4)


def test_means_over_a_text(small):
    model, text = small(vocab_size=257), "naïve"
    result = score(model, ByteTokenizer(), text)
    assert result.tokens == list(text.encode()) and result.n_bytes == 6
    assert result.nats == pytest.approx(token_nats(model, [256, *text.encode()]))
    assert result.loss == pytest.approx(sum(result.nats) / 6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2))


def test_without_an_end_of_text_the_first_token_is_only_read(small):
    result = score(small(vocab_size=3), CharTokenizer("abé"), "éab")
    assert result.tokens == [0, 1] and result.n_bytes == 2 and len(result.nats) == 2
    for text in ("", "a"):
        with pytest.raises(ValueError, match="no token to predict"):
            score(small(vocab_size=3), CharTokenizer("abé"), text)


def test_the_whole_vocabulary_takes_part_as_in_training(small):
    model = small(vocab_size=300)
    result = score(model, ByteTokenizer(), "ab")
    expected = -torch.log_softmax(model(torch.tensor([[256, 97]]))[0], -1)[[0, 1], [97, 98]]
    assert result.nats == pytest.approx(expected.tolist(), abs=1e-4)
    windows = torch.tensor(
        [[256, *b"eleven more"]]
    )  # a training sequence, with vocabulary entries that the tokenizer lacks
    loss = F.cross_entropy(model(windows[:, :-1])[0], windows[0, 1:], reduction="sum")
    assert score(model, ByteTokenizer(), "eleven more").loss == pytest.approx(loss.item() / 11, rel=1e-5)


def test_a_tokenizers_own_beginning_goes_first(small):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    library.add_special_tokens(["<s>", "</s>"])
    library.decoder = tokenizers.decoders.Fuse()
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    model, tokenizer = small(vocab_size=4), FileTokenizer(library.to_str())
    result = score(model, tokenizer, "ab")
    assert tokenizer.eot == 1 and result.tokens == [2, 3] and result.n_bytes == 2
    assert result.nats == pytest.approx(token_nats(model, [0, 2, 3]))


def test_equals_the_validation_loss_of_a_run(tmp_path):
    """Window by window, as validation reads the split; the model's vocabulary is larger than the tokenizer's."""
    config = small_run(tmp_path / "run")
    config.model.vocab_size = 300
    with torch.enable_grad():
        reported = train(config).summary["val/loss"]
    data = prepare(config.data, config.tokenizer, progress=False)
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    model = build_model(config.model, 300, seed=0).eval()
    model.load_state_dict(dict(saved.model))
    ids, context = data.val.tokens[:].tolist(), config.model.context_length
    nats = [cost for at in range(0, len(ids) - 1, context) for cost in token_nats(model, ids[at : at + context + 1])]
    assert len(nats) == len(ids) - 1
    assert sum(nats) / len(nats) == pytest.approx(reported, abs=1e-5)
    first = data.tokenizer.decode(ids[: context + 1])
    characters = CharTokenizer("".join(map(chr, range(256))))  # the same ids, and no beginning-of-text token
    ours = score(model, characters, first)
    assert ours.nats == pytest.approx(nats[:context], abs=1e-4)


def test_only_a_causal_model_predicts_a_text():
    model = build_model(EncoderConfig(n_layer=1, n_head=2, d_model=8), 256, seed=0)
    with pytest.raises(ValueError, match="of type encoder does not predict the next token"):
        token_nats(model, [1, 2])
