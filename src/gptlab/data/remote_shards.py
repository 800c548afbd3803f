"""Token shards at an address, fetched whole into the cache, one after the other and some ahead."""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO

import numpy as np

from gptlab.data.cache import cache_root
from gptlab.data.order import ShardOrder
from gptlab.data.shard_cache import Cached, ShardCache
from gptlab.data.sources.remote import BLOCK_BYTES, Place, UnreadableError
from gptlab.data.token_file import PAYLOAD_OFFSET_BYTES, header_bytes, token_dtype
from gptlab.data.token_shards import HEAD_TOKENS, Shard, ShardedTokens
from gptlab.errors import UserError
from gptlab.units import bytes_text

GIB = 1 << 30
_HEADS = 64  # beginnings of shards in memory
_LOOK_SECONDS = 1.0  # for room in the cache, which other processes give back

Write = Callable[[bytes], object]


class ShardReader:
    """Reads shards at an address from beginning to end and compares what arrives with the manifest."""

    def __init__(self, url: str, vocab_size: int, tokenizer: str) -> None:
        self.url, self.vocab_size, self.tokenizer = url, vocab_size, tokenizer
        self._place: Place | None = None

    @property
    def place(self) -> Place:
        """The folder at the address, opened at the first call."""
        self._place = self._place or Place(self.url)
        return self._place

    def size_bytes(self, shard: Shard) -> int:
        """The size of a shard's file."""
        return shard.size_bytes(self.vocab_size)

    def head_bytes(self, shard: Shard) -> int:
        """The size of a shard's first ids, as many as its `head_sha256` is of."""
        return min(shard.n_tokens, HEAD_TOKENS) * token_dtype(self.vocab_size).itemsize

    def copy(self, shard: Shard, write: Write | None = None) -> str | None:
        """Read a shard's file and give it away in blocks; returns what is wrong with it. UserError where it cannot."""
        header = header_bytes(shard.header(self.vocab_size, self.tokenizer))
        digest, begin = hashlib.sha256(), b""
        for block in self._blocks(shard.name, self.size_bytes(shard)):
            n_more = max(0, PAYLOAD_OFFSET_BYTES - len(begin))
            begin += block[:n_more]
            if n_more and len(begin) == PAYLOAD_OFFSET_BYTES and begin != header:
                return "is another shard than manifest.json says"
            digest.update(block[n_more:])
            if write is not None:
                write(block)
        return None if digest.hexdigest() == shard.sha256 else _ALTERED

    def copy_head(self, shard: Shard, write: Write) -> str | None:
        """The same of a shard's first ids, without the header."""
        digest, n_more = hashlib.sha256(), PAYLOAD_OFFSET_BYTES
        for block in self._blocks(shard.name, PAYLOAD_OFFSET_BYTES + self.head_bytes(shard)):
            ids = block[n_more:]
            n_more -= len(block) - len(ids)
            digest.update(ids)
            write(ids)
        return None if digest.hexdigest() == shard.head_sha256 else _ALTERED

    def fetch(self, file: BinaryIO, shard: Shard, *, head: bool = False) -> None:
        """Write a shard, or its first ids, into a file; what arrives damaged is fetched once more."""
        copy = self.copy_head if head else self.copy
        for _ in range(2):
            file.seek(0)
            wrong = copy(shard, file.write)
            if wrong is None:
                return
        raise UserError(f"{self.place.shown}/{shard.name} {wrong}; restore it from a copy, or prepare the shards again")

    def _blocks(self, name: str, n_bytes: int) -> Iterator[bytes]:
        """The first bytes of a file."""
        left = n_bytes
        try:
            with self.place.open(name, size_bytes=n_bytes) as file:
                while left:
                    block = file.read(min(left, BLOCK_BYTES))
                    left -= len(block)
                    yield block
        except UnreadableError as error:
            then = "restore it from a copy" if error.is_missing else "run the same command again, which goes on"
            raise UserError(f"{self.place.shown}/{name} cannot be fetched ({error.text}); {then}") from error

    def __reduce__(self):
        return ShardReader, (self.url, self.vocab_size, self.tokenizer)


_ALTERED = "was altered (its checksum is not that in manifest.json)"


class FetchedTokens(ShardedTokens):
    """The ids of shards at an address, each fetched into the cache when it is read, or ahead.

    Open at a time are the shards that `hold` names and one more. Where a sequence goes on in a shard that is not open,
    the first ids of that shard are fetched instead of all.
    """

    def __init__(self, reader: ShardReader, shards: Sequence[Shard], cache_dir: str | None, limit_bytes: int) -> None:
        super().__init__([shard.n_tokens for shard in shards], token_dtype(reader.vocab_size))
        self._arguments = (reader, shards, cache_dir, limit_bytes)
        self._reader, self._shards = reader, shards
        self._cache = ShardCache(cache_root(cache_dir), limit_bytes)
        self._lock = threading.Lock()  # guards what follows
        self._open: dict[int, tuple[BinaryIO, np.ndarray]] = {}
        self._heads: OrderedDict[int, np.ndarray] = OrderedDict()
        self._now: list[int] = []  # of the window
        self._next: list[int] = []  # to be fetched where there is room
        self._other: int | None = None  # the newest that is not among these, and the one after it where they are
        self._sequel: int | None = None  # read one after the other
        self._failed: set[int] = set()
        self._thread: threading.Thread | None = None
        self._changed = threading.Event()
        weakref.finalize(self, _close, self._open, self._changed)

    @property
    def largest_bytes(self) -> int:
        """The size of the largest shard."""
        return max((self._reader.size_bytes(shard) for shard in self._shards), default=0)

    def hold(self, now: Sequence[int], ahead: Sequence[int]) -> None:
        """Keep some shards open until the next call, fetch those that are missing in the background, then others.

        Those ahead are fetched as far as the cache has room beside what is open.
        """
        with self._lock:
            self._now, self._next = list(now), list(ahead)
            self._failed.clear()
            self._close_others()
            self._start()

    def _close_others(self) -> None:
        kept = {*self._now, *self._next, self._other, self._sequel}
        for number in [number for number in self._open if number not in kept]:
            self._open.pop(number)[0].close()

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: the end of a process does not wait for a download, of which nothing is left under its name.
            arguments = (weakref.ref(self), self._changed)
            self._thread = threading.Thread(target=_fetch_ahead, args=arguments, name="shards", daemon=True)
            self._thread.start()
        self._changed.set()

    def _part(self, number: int, begin: int, end: int, *, continued: bool) -> np.ndarray:
        if continued and self._has_head(number, end) and number not in self._open:
            return self._head(number)[begin:end]
        return self._tokens(number, continued)[begin:end]

    def _has_head(self, number: int, end: int) -> bool:
        return end <= HEAD_TOKENS and bool(self._shards[number].head_sha256)

    def _tokens(self, number: int, continued: bool) -> np.ndarray:
        with self._lock:
            if number in self._next and number not in self._open and not continued:
                # In the middle of a batch the next window has begun, and the cache may not have room for two.
                self._now, self._next = self._next, []
                self._close_others()
            if number != self._other and number not in self._now and number not in self._next:
                in_order = self._other is not None and number == self._other + 1 and number + 1 < len(self._shards)
                self._other, self._sequel = number, number + 1 if in_order else None
                self._close_others()
                if in_order:
                    self._start()
            found = self._open.get(number)
        if found is not None:
            return found[1]
        file = self._cache.open(self._shard(number))
        assert file is not None
        with self._lock:
            return self._keep(number, file)

    def _keep(self, number: int, file: BinaryIO) -> np.ndarray:
        if number in self._open:  # the other thread was first
            file.close()
        else:
            shape, offset = (self.lengths[number],), PAYLOAD_OFFSET_BYTES
            mapped = np.memmap(file, dtype=self.dtype, mode="r", offset=offset, shape=shape)  # pyright: ignore
            self._open[number] = (file, mapped.view(np.ndarray))
        return self._open[number][1]

    def _shard(self, number: int) -> Cached:
        shard = self._shards[number]
        fetch = partial(self._reader.fetch, shard=shard)
        return Cached(name=f"{shard.sha256}.bin", size_bytes=self._reader.size_bytes(shard), fetch=fetch)

    def _head(self, number: int) -> np.ndarray:
        with self._lock:
            found = self._heads.get(number)
        if found is not None:
            return found
        shard = self._shards[number]
        fetch = partial(self._reader.fetch, shard=shard, head=True)
        size_bytes = self._reader.head_bytes(shard)
        file = self._cache.open(Cached(name=f"{shard.head_sha256}.head", size_bytes=size_bytes, fetch=fetch))
        assert file is not None
        with file:
            head = np.frombuffer(file.read(), self.dtype)
        with self._lock:
            self._heads[number] = head
            if len(self._heads) > _HEADS:
                self._heads.popitem(last=False)
        return head

    # in the background

    def fetch_one(self) -> bool:
        """Fetch the next shard that is wanted and not open; returns whether there may be another now."""
        with self._lock:
            number = self._missing()
            needed = number in self._now
        if number is None:
            return False
        file = None
        try:
            file = self._cache.open(self._shard(number), needed=needed)
            after = number + 1
            if file is not None and after < len(self._shards) and self._has_head(after, 1):
                self._head(after)
        except Exception:  # whoever needs it gets the error
            with self._lock:
                self._failed.add(number)
        with self._lock:
            if file is None:
                return number in self._failed
            if number in self._wanted():
                self._keep(number, file)
            else:
                file.close()
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether a shard is wanted that the cache had no room for."""
        with self._lock:
            return self._missing() is not None

    def _missing(self) -> int | None:
        missing = (number for number in self._wanted() if number not in self._open)
        return next((number for number in missing if number not in self._failed), None)

    def _wanted(self) -> list[int]:
        return [*self._now, *([] if self._sequel is None else [self._sequel]), *self._next]

    def __reduce__(self):
        return FetchedTokens, self._arguments


def _fetch_ahead(tokens: "weakref.ref[FetchedTokens]", changed: threading.Event) -> None:
    while (found := tokens()) is not None:
        changed.clear()
        is_more = found.fetch_one()
        is_waiting = found.is_waiting
        del found  # not kept alive by waiting
        if not is_more:
            changed.wait(_LOOK_SECONDS if is_waiting else None)


def _close(opened: dict[int, tuple[BinaryIO, np.ndarray]], changed: threading.Event) -> None:
    changed.set()
    for file, _ in opened.values():
        file.close()


class ReadAhead:
    """Has the shards of a sample's window open, and fetches those of the next."""

    def __init__(self, tokens: FetchedTokens, order: ShardOrder) -> None:
        self._tokens, self._order = tokens, order
        self._window = -1

    def at(self, sample: int) -> None:
        """A sample of the corpus is read next, and those after it."""
        window = self._order.window(sample)
        if window != self._window:
            self._window = window
            now = self._order.shards(window)
            ahead = [number for number in self._order.shards(window + 1) if number not in now]
            self._tokens.hold(now, ahead)


def check_room(tokens: FetchedTokens, n_window: int, cache_gib: float, cache_dir: str | None) -> None:
    """Refuse a window that the cache cannot hold, with another shard and the first ids of all of them."""
    n = min(n_window, len(tokens.lengths)) + 1
    needed = n * (tokens.largest_bytes + HEAD_TOKENS * tokens.dtype.itemsize)
    if needed > cache_gib * GIB:
        raise UserError(
            f"data.cache_gib={cache_gib:g} is too small for data.shuffle_shards={n_window}: {n} shards of "
            f"{bytes_text(tokens.largest_bytes)} need {needed / GIB:.3g} GiB in {cache_root(cache_dir)}; raise the "
            "first or lower the second"
        )
