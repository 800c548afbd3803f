"""What is read of BERT and T5 computes what transformers computes: logits, losses and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from interop.external import BERTS, POSITIONS, T5S, VOCAB_SIZE
from interop.test_parity import assert_near

from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model
from gptlab.models.encoder.config import Heads
from gptlab.nn.loss import linear_cross_entropy

LENGTHS = (13, 9, 1)


def drawn(seed, high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def attention_mask(lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def pair(case, tmp_path):
    folder = TransformersFolder(case.save(tmp_path / "theirs"))
    ours = build_model(folder.config, folder.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(folder.tensors()))
    return folder, case.model(), ours


def assert_same_gradients(folder, theirs, ours):
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    locations = folder.architecture.locations(folder.config)
    bare = not any(name.startswith(folder.architecture.prefix) for name in gradients)
    compared = set()
    largest = max(p.grad.abs().max() for p in ours.parameters())
    for own, parameter in ours.named_parameters():
        name = locations[own].name.removeprefix(folder.architecture.prefix if bare else "")
        compared.add(name)
        if own.endswith("attn.k.bias"):  # moves all scores of a query alike: rounding alone
            assert (parameter.grad - gradients[name]).abs().max() <= 1e-6 * largest, own
        else:
            assert_near(parameter.grad, gradients[name], own)
    assert compared == set(gradients)


def bert_batch(n_segment):
    mask = attention_mask(LENGTHS)
    tokens = (1 + drawn(1, VOCAB_SIZE - 1, 3, 13)) * mask  # transformers never trains the embedding of token 0
    targets = drawn(2, VOCAB_SIZE, 3, 13).masked_fill((drawn(3, 3, 3, 13) > 0) | ~mask, -100)
    return tokens, drawn(4, n_segment, 3, 13), mask, targets, drawn(5, 2, 3)


@pytest.mark.parametrize("name", BERTS)
def test_bert(name, tmp_path):
    folder, theirs, ours = pair(BERTS[name], tmp_path)
    tokens, segments, mask, targets, follows = bert_batch(ours.config.n_segment)
    inputs = {"input_ids": tokens, "token_type_ids": segments, "attention_mask": mask.long()}
    hidden = ours.hidden_states(tokens, segments=segments, attention_mask=mask)
    if ours.config.heads is Heads.none:
        reference = theirs(**inputs)
        assert_near(hidden[mask], reference.last_hidden_state[mask], "hidden_states")
        assert_near(ours.pooled(hidden), reference.pooler_output, "pooled")
        weights = torch.randn(reference.pooler_output.shape, generator=torch.Generator().manual_seed(6))
        (ours.pooled(hidden) * weights).sum().backward()
        (reference.pooler_output * weights).sum().backward()
        return assert_same_gradients(folder, theirs, ours)

    logits = ours(tokens, segments=segments, attention_mask=mask)
    chosen = targets != -100
    total = linear_cross_entropy(ours.mlm_transform(hidden[chosen]), ours.head, targets[chosen])
    loss = total / chosen.sum()
    if ours.config.heads is Heads.masked_lm:
        reference = theirs(**inputs, labels=targets)
        assert_near(logits[mask], reference.logits[mask], "logits")
    else:
        reference = theirs(**inputs, labels=targets, next_sentence_label=follows)
        assert_near(logits[mask], reference.prediction_logits[mask], "logits")
        scores = ours.next_sentence(ours.pooled(hidden))
        assert_near(scores, reference.seq_relationship_logits, "next sentence")
        loss = loss + F.cross_entropy(scores, follows)
    assert_near(loss, reference.loss, "loss")
    loss.backward()
    reference.loss.backward()
    assert_same_gradients(folder, theirs, ours)


def test_bert_without_segments_and_mask(tmp_path):
    _, theirs, ours = pair(BERTS["bert"], tmp_path)
    tokens = drawn(1, VOCAB_SIZE, 2, POSITIONS)
    assert_near(ours(tokens), theirs(tokens).prediction_logits, "logits")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", T5S)
def test_t5(name, padded, tmp_path):
    folder, theirs, ours = pair(T5S[name], tmp_path)
    source, targets = drawn(1, VOCAB_SIZE, 3, 29), drawn(2, VOCAB_SIZE, 3, 17)
    mask = attention_mask((29, 5, 1)) if padded else None
    reference = theirs(source, attention_mask=None if mask is None else mask.long(), labels=targets)
    tokens = theirs._shift_right(targets)
    assert tokens[0, 0] == ours.config.decoder_start_token_id
    assert_near(ours(tokens, source=source, source_mask=mask), reference.logits, "logits")
    hidden = ours.hidden_states(tokens, source=source, source_mask=mask)
    loss = linear_cross_entropy(hidden, ours.head, targets) / targets.numel()
    assert_near(loss, reference.loss, "loss")
    loss.backward()
    reference.loss.backward()
    assert_same_gradients(folder, theirs, ours)


def test_encoding_first_changes_nothing(tmp_path):
    _, _, ours = pair(T5S["t5 1.1"], tmp_path)
    source, tokens, mask = drawn(1, VOCAB_SIZE, 3, 13), drawn(2, VOCAB_SIZE, 3, 6), attention_mask(LENGTHS)
    memory = ours.encode(source, mask)
    assert_near(ours(tokens, source=memory), ours(tokens, source=source, source_mask=mask), "logits")
    again = memory.select([2, 2, 0])
    assert again.select([0, 1, 2]) is again and again.select([1, 0, 2]) is again
    rows = [2, 2, 0]
    assert_near(ours(tokens, source=again), ours(tokens, source=source[rows], source_mask=mask[rows]), "logits")
