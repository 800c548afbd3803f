"""Token shards at an address: the same sequences as of a folder, through a cache that holds a window and the next."""

import json
import pickle
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from file_server import serving

from gptlab import UserError
from gptlab.data import remote_shards, token_shards
from gptlab.data.examples.pairs import SegmentPairs
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import ShardOrder
from gptlab.data.prepare import inputs_of, known_tokens, prepare
from gptlab.data.remote_shards import FetchedTokens, ReadAhead, ShardReader, check_room
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources import remote
from gptlab.data.sources.config import ShardsConfig, TextConfig
from gptlab.data.token_shards import Manifest, open_folder, read_manifest, verify_shards
from gptlab.data.tokenizers.config import ByteConfig, TokenizerFileConfig

LENGTH, SHARD_TOKENS = 24, 250


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    for number in range(12):
        (root / f"{number:02d}.txt").write_bytes(draw.integers(97, 123, 350).astype(np.uint8).tobytes())
    out = tmp_path_factory.mktemp("shards")
    config = TextConfig(path=str(root), split="document", val_fraction=0.1, n_processes=1, cache_dir=f"{root}-cache")
    prepare_shards(config, ByteConfig(), out, shard_tokens=SHARD_TOKENS)
    return out


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_SECONDS", (0.0,) * 4)
    monkeypatch.setattr(remote, "FIRST_WAITS_SECONDS", (0.0,) * 2)
    monkeypatch.setattr(remote_shards, "_LOOK_SECONDS", 0.01)


def opened(url, tmp_path, **settings):
    config = ShardsConfig(path=str(url), cache_dir=str(tmp_path / "cache"), **settings)
    return prepare(config, TokenizerFileConfig(path=f"{url}/tokenizer.json"))


def tokens_of(url, tmp_path, limit_bytes=1 << 30, part="train"):
    manifest = read_manifest(open_folder(str(url)))
    reader = ShardReader(str(url), manifest.tokenizer["vocab_size"], manifest.tokenizer["fingerprint"])
    return FetchedTokens(reader, manifest.shards[part], str(tmp_path / "cache"), limit_bytes)


def order_of(windows, n_window=3, seed=1):
    return ShardOrder(
        seed=seed,
        n_examples=len(windows),
        shard_tokens=windows.sharded.shard_tokens,
        stride=windows.stride,
        n_window=n_window,
    )


def cached(tmp_path, ending=".bin"):
    return [path for path in (tmp_path / "cache" / "shards").iterdir() if path.name.endswith(ending)]


def bytes_held(tmp_path):
    total = 0
    for path in cached(tmp_path, ""):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("ranges", [True, False])
def test_the_same_data_as_of_the_folder(tmp_path, folder, ranges):
    here = opened(folder, tmp_path)
    with serving(folder, ranges=ranges) as server:
        there = opened(server.url, tmp_path)
        assert (there.fingerprint, there.inputs) == (here.fingerprint, here.inputs)
        assert server.url in there.description and not (tmp_path / "cache" / "shards").exists()
        server.broken, server.busy = 2, 2
        for part in ("train", "val"):
            mine, others = there.part(part), here.part(part)
            assert len(mine) == len(others) and mine.n_bytes == others.n_bytes
            assert mine.unigram_entropy() == others.unigram_entropy()
            for windows in (SlidingWindows, SlidingWindows.each_token_once):
                arguments = (LENGTH, 7) if windows is SlidingWindows else (LENGTH,)
                a, b = (windows(file.tokens, *arguments) for file in (mine, others))
                every = np.arange(len(a))
                assert len(a) == len(b) and np.array_equal(a.gather(every), b.gather(every))
        assert known_tokens(ShardsConfig(path=server.url), ByteConfig()) is None
        config = ShardsConfig(path=server.url)
        assert inputs_of(config, TokenizerFileConfig(path=f"{server.url}/tokenizer.json")) == here.inputs


def test_a_window_of_shards_is_all_that_the_cache_holds(tmp_path, folder):
    """And those of the next window where there is room; each shard is fetched once in an epoch, first ids apart."""
    size = 4096 + 2 * SHARD_TOKENS
    n_window = 3
    with serving(folder) as server:
        for room in (n_window + 2, 2 * n_window):
            cache, limit = tmp_path / str(room), room * size + 2 * n_window * 2 * SHARD_TOKENS
            windows = SlidingWindows(tokens_of(server.url, cache, limit), LENGTH, LENGTH)
            local = SlidingWindows(opened(folder, cache).train.tokens, LENGTH, LENGTH)
            order, most = order_of(windows, n_window), 0
            ahead = ReadAhead(windows.sharded, order)
            server.gets.clear()
            for i in range(0, 2 * len(windows), 2):
                ahead.at(i)
                index = order.indices(np.array([i, i + 1]))
                assert np.array_equal(windows.gather(index), local.gather(index))
                most = max(most, len(cached(cache)))
                # A file may be removed and another grow while they are looked at one after the other.
                assert any(bytes_held(cache) <= limit for _ in range(5))
                assert len(windows.sharded._open) <= 2 * n_window
            assert n_window <= most <= room
            whole = [path for path, _ in server.gets if path.startswith("/train")]
            n_shards = len(windows.sharded.lengths)
            # Twice each: for an epoch of its own, and for the first ids of a shard where the one before it ends.
            assert len(whole) <= 2 * 2 * n_shards


def test_the_next_window_is_fetched_in_the_background(tmp_path, folder):
    with serving(folder) as server:
        windows = SlidingWindows(tokens_of(server.url, tmp_path), LENGTH, LENGTH)
        order = order_of(windows)
        ReadAhead(windows.sharded, order).at(0)
        expected = {*order.shards(0), *order.shards(1)}
        deadline = time.monotonic() + 60
        while set(windows.sharded._open) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(windows.sharded._open) == expected
        # One after the other, each once, and of those after a window's shards the first ids.
        whole = [path for path, asked in server.gets if path.startswith("/train")]
        names = [f"/train-{number:05d}.bin" for number in [*order.shards(0), *order.shards(1)]]
        assert next(name for name in whole if name in names) == names[0]


def test_several_devices_and_a_resume_read_the_same(tmp_path, folder):
    """1, 2 and 4 ranks share one download; a process that begins in the middle goes on with the same sequences."""
    local = SlidingWindows(opened(folder, tmp_path).train.tokens, LENGTH, LENGTH)
    order = order_of(local)
    expected = local.gather(order.indices(np.arange(80)))
    for n_ranks in (1, 2, 4):
        with serving(folder) as server:
            cache, found = tmp_path / f"{n_ranks} ranks", {}

            def rank(number, start=0, url=server.url, cache=cache, n_ranks=n_ranks, found=found):
                windows = SlidingWindows(tokens_of(url, cache), LENGTH, LENGTH)
                ahead = ReadAhead(windows.sharded, order_of(windows))
                for step in range(start, 80, 8):
                    mine = step + number * (8 // n_ranks) + np.arange(8 // n_ranks)
                    ahead.at(int(mine[0]))
                    found[int(mine[0])] = windows.gather(order.indices(mine))

            threads = [threading.Thread(target=rank, args=(number,)) for number in range(n_ranks)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert np.array_equal(np.concatenate([found[start] for start in sorted(found)]), expected)
            fetched = [path for path, _ in server.gets if path.startswith("/train")]
            assert max(fetched.count(path) for path in fetched) <= 2, server.gets  # all of it, and its first ids
            again = found.copy()
            found.clear()
            rank(0, start=48)
            assert all(np.array_equal(found[start], again[start]) for start in found)


def test_a_worker_opens_its_own(tmp_path, folder):
    with serving(folder) as server:
        windows = SlidingWindows(tokens_of(server.url, tmp_path), LENGTH, LENGTH)
        ahead = ReadAhead(windows.sharded, order_of(windows))
        first = windows.gather(np.array([0, 5]))
        there, read_ahead = pickle.loads(pickle.dumps((windows, ahead)))
        assert there.sharded is read_ahead._tokens is not windows.sharded
        read_ahead.at(0)
        assert np.array_equal(there.gather(np.array([0, 5])), first)


def copy_of(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != ".lock":
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def damaged(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: damaged(path, 4096 + 40), "was altered"),
        (lambda path: damaged(path, 30), "another shard than manifest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "ended after"),
        (lambda path: path.unlink(), "does not exist"),
    ],
    ids=["ids", "header", "cut", "missing"],
)
def test_what_arrives_damaged_is_named(tmp_path, folder, damage, says):
    copy = copy_of(folder, tmp_path)
    damage(copy / "train-00001.bin")
    with serving(copy) as server:
        windows = SlidingWindows(opened(server.url, tmp_path).train.tokens, LENGTH, LENGTH)
        windows.gather(np.array([0]))
        with pytest.raises(UserError, match=rf"{server.url}/train-00001\.bin .*{says}"):
            windows.gather(np.array([SHARD_TOKENS // LENGTH + 1]))
        damaged_one = read_manifest(copy).shards["train"][1]
        assert not any(path.name.startswith(damaged_one.sha256) for path in cached(tmp_path, ""))
        wrong = {shard.name: str(error) for shard, error in verify_shards(open_folder(server.url), 2) if error}
        assert list(wrong) == ["train-00001.bin"] and says in wrong["train-00001.bin"]


def test_a_server_that_is_gone_is_named_with_what_to_do(tmp_path, folder):
    with serving(folder) as server:
        windows = SlidingWindows(opened(server.url, tmp_path).train.tokens, LENGTH, LENGTH)
        server.busy = 10**6
        with pytest.raises(UserError, match=r"train-00000\.bin cannot be fetched \(5 attempts.*503.*same command"):
            windows.gather(np.array([0]))
        server.busy = 0
        windows.gather(np.array([0]))  # later it is there
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(.*\); run the same command again$") as error:
        opened(server.url, tmp_path)
    assert str(error.value).count("cannot be read") == 1 and "delete" not in str(error.value)


def test_shards_without_checksums_of_their_first_ids(tmp_path, folder):
    copy = copy_of(folder, tmp_path)
    content = json.loads((copy / "manifest.json").read_text())
    del content["checksum"]
    content["version"] = 1
    for shards in content["shards"].values():
        for shard in shards:
            del shard["head_sha256"]
    checksum = token_shards._sha256(content)
    (copy / "manifest.json").write_text(json.dumps(content | {"checksum": checksum}))
    assert read_manifest(copy).fingerprint == read_manifest(folder).fingerprint
    local = SlidingWindows(opened(copy, tmp_path).train.tokens, LENGTH, LENGTH)
    windows = SlidingWindows(opened(copy.as_uri(), tmp_path).train.tokens, LENGTH, LENGTH)
    every = np.arange(len(local))
    assert np.array_equal(windows.gather(every), local.gather(every))
    assert not cached(tmp_path, ".head")


def test_the_first_ids_of_a_shard_are_fetched_alone(tmp_path, folder):
    manifest: Manifest = read_manifest(folder)
    windows = SlidingWindows(opened(folder.as_uri(), tmp_path).train.tokens, LENGTH, LENGTH)
    windows.gather(np.array([SHARD_TOKENS // LENGTH]))  # begins in shard 0 and ends in shard 1
    assert [path.name for path in cached(tmp_path)] == [f"{manifest.shards['train'][0].sha256}.bin"]
    assert [path.name for path in cached(tmp_path, ".head")] == [f"{manifest.shards['train'][1].head_sha256}.head"]


def test_a_window_that_the_cache_cannot_hold_is_refused(tmp_path, folder):
    tokens = tokens_of(folder.as_uri(), tmp_path)
    check_room(tokens, 3, 1.0, str(tmp_path))
    with pytest.raises(UserError, match=r"data\.cache_gib=0\.0001.*data\.shuffle_shards=3.*4 shards"):
        check_room(tokens, 3, 0.0001, str(tmp_path))
    with pytest.raises(UserError, match=r"data\.cache_gib=1e-06"):
        opened(folder.as_uri(), tmp_path, cache_gib=1e-6)


def test_segment_pairs_need_a_folder(tmp_path, folder):
    train = opened(folder.as_uri(), tmp_path).train
    with pytest.raises(UserError, match=r"objective.next_sentence.*copy the shards"):
        SegmentPairs(train, 256, 16, split="train")


def test_a_place_without_shards(tmp_path, folder):
    with pytest.raises(UserError, match=r"memory://nothing holds no manifest\.json"):
        opened("memory://nothing", tmp_path)
    (copy_of(folder, tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        opened((tmp_path / "copy").as_uri(), tmp_path)
