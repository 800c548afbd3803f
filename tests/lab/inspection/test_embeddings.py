"""Neighbours and angles of embeddings, against sums written out."""

import base64
import math

import numpy as np
import pytest
from small_runs import write_run

from gptlab.lab.inspection import embeddings as module
from gptlab.lab.inspection.embeddings import degrees, embeddings
from gptlab.lab.inspection.subject import open_subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return open_subject(str(write_run(tmp_path_factory.mktemp("some runs") / "run")), prompt="a bad cab")


def cosine(a, b):
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def test_cosines_and_neighbours(subject):
    found, table = embeddings(subject), subject.model.tok_emb.weight.detach().double().numpy()
    chosen = [ord(letter) for letter in "a bdc"]
    assert found["tokens"] == ["a", " ", "b", "d", "c"]
    expected = [[cosine(table[a], table[b]) for b in chosen] for a in chosen]
    assert np.allclose(found["cosines"], expected, atol=1e-5)
    assert found["norms"] == pytest.approx([math.sqrt(table[a] @ table[a]) for a in chosen], rel=1e-5)
    for own, neighbours in zip(chosen, found["neighbours"], strict=True):
        order = sorted((i for i in range(257) if i != own), key=lambda i: -cosine(table[own], table[i]))
        assert [one["token"] for one in neighbours] == [subject.text_of(i) for i in order[:8]]
        first = cosine(table[own], table[order[0]])
        assert neighbours[0]["degrees"] == pytest.approx(math.degrees(math.acos(first)), abs=1e-3)


def test_a_small_table_goes_along_in_eight_bits(subject, monkeypatch):
    found = embeddings(subject)["table"]
    table = subject.model.tok_emb.weight.detach().double().numpy()
    carried = np.frombuffer(base64.b64decode(found["values"]), np.int8).reshape(257, found["width"]).astype(float)
    errors = [abs(cosine(carried[3], carried[i]) - cosine(table[3], table[i])) for i in range(257)]
    assert max(errors) < 0.02 and len(found["texts"]) == 257
    monkeypatch.setattr(module, "CARRIED_BYTES", 100)
    assert embeddings(subject)["table"] is None


def test_angles():
    assert [degrees(one) for one in (1.0, 0.5, 0.0, -1.0, 1.0000001)] == pytest.approx([0, 60, 90, 180, 0])
