"""Which document a token is of, against counting separators one by one; and at the size of 10^12 tokens."""

import numpy as np
import pytest

from gptlab.data.documents import Documents, document_of
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import ExampleOrder
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import TextConfig
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.token_shards import TokenShards
from gptlab.data.tokenizers.config import ByteConfig

EOT = 256


def write(path, ids) -> TokenFile:
    with TokenWriter(path, vocab_size=257, tokenizer="t") as writer:
        writer.write(np.array(ids))
        writer.end_documents(1 + list(ids).count(EOT), n_bytes=len(ids), n_characters=len(ids))
    return TokenFile.open(path)


def by_counting(ids: list[int], position: int) -> tuple[int, int, int]:
    number = ids[:position].count(EOT)
    ends = [i for i, token in enumerate(ids) if token == EOT] + [len(ids)]
    return number, ends[number - 1] + 1 if number else 0, ends[number]


def test_every_token_of_a_file(tmp_path):
    ids = [1, 2, EOT, EOT, 3, EOT, 4, 5, 6, EOT]
    documents = Documents(write(tmp_path / "train.bin", ids), EOT)
    for position in range(len(ids)):
        assert tuple(documents.at(position)) == by_counting(ids, position)
    assert [tuple(one) for one in documents.within(1, 8)] == [(0, 0, 2), (1, 3, 3), (2, 4, 5), (3, 6, 9)]
    alone = Documents(write(tmp_path / "one.bin", [1, 2, 3]), None)
    assert alone.are_known and tuple(alone.at(2)) == (0, 0, 3)
    assert not Documents(write(tmp_path / "two.bin", [1, EOT, 3]), None).are_known


def test_documents_over_the_bounds_of_shards(tmp_path):
    texts = tmp_path / "some texts"
    texts.mkdir()
    for i, size in enumerate((5, 1, 30, 7, 64, 2, 11, 25, 3)):
        (texts / f"{i}.txt").write_text(chr(97 + i) * size)
    data = TextConfig(path=str(texts), val_fraction=0.0, split="document")
    manifest = prepare_shards(data, ByteConfig(), tmp_path / "shards", shard_tokens=10)
    tokens = TokenShards.open(tmp_path / "shards", manifest, "train")
    assert len(manifest.shards["train"]) > 10
    ids = tokens.tokens[: len(tokens)].tolist()
    assert 1 + ids.count(EOT) == tokens.n_documents == 9
    documents = Documents(tokens, EOT)
    for position in range(len(ids)):
        assert tuple(documents.at(position)) == by_counting(ids, position)


class Arithmetic:
    """The separators of 10^9 documents of 1 + 1023 tokens, without holding them."""

    def __init__(self, n: int, every: int):
        self.n, self.every, self.n_read = n, every, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        self.n_read += 1
        return (i + 1) * self.every - 1


@pytest.mark.parametrize("every", [1024, 700])
def test_the_look_up_among_a_billion_sequences(every):
    n_sequences, length = 10**9, 1024
    separators = Arithmetic(n_sequences * length // every, every)
    order = ExampleOrder(seed=3, n_examples=n_sequences)
    samples = np.arange(512) + 812 * 512
    begins = order.indices(samples) * length
    found = [document_of(separators, position) for position in begins.tolist()]
    assert found == [position // every for position in begins.tolist()]
    assert separators.n_read <= 512 * 31, "as many steps as a binary search takes"


def test_ranges_are_what_sequences_hold():
    tokens = np.arange(100)
    windows = SlidingWindows(tokens, 7, 5)
    indices = np.array([0, 3, len(windows) - 1])
    for (begin, end), sequence in zip(windows.ranges(indices), windows.gather(indices), strict=True):
        assert tokens[begin:end].tolist() == sequence.tolist()
