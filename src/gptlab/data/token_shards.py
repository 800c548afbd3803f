"""Token shards: the splits of a corpus as many token files in one folder, listed in its manifest.json."""

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.sources.remote import Place
from gptlab.data.token_file import (
    ENTROPY_TOKENS,
    PAYLOAD_OFFSET_BYTES,
    TokenFile,
    TokenHeader,
    TokenPart,
    entropy_of,
    read_header,
    remembered,
    token_dtype,
)
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, restore_tokenizer
from gptlab.errors import UserError
from gptlab.files import is_address

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
_FORMAT = "gptlab token shards"
_VERSION = 2
_READABLE = (1, 2)  # 1: without the checksums of the first ids
HEAD_TOKENS = 65_536  # at the beginning of a shard, with a checksum of their own
_OPEN_FILES = 1024  # mapped at a time
_BLOCK_TOKENS = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One token file; its documents, bytes and characters are those of the documents that begin in it.

    `sha256` is that of its ids, `head_sha256` that of the first HEAD_TOKENS of them, "" where it is not known.
    """

    name: str
    n_tokens: int
    n_documents: int
    n_bytes: int
    n_characters: int
    sha256: str
    head_sha256: str = ""

    def header(self, vocab_size: int, tokenizer: str) -> TokenHeader:
        """The header of its file."""
        return TokenHeader(
            n_tokens=self.n_tokens,
            n_documents=self.n_documents,
            n_bytes=self.n_bytes,
            n_characters=self.n_characters,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            checksum=self.sha256,
        )

    def size_bytes(self, vocab_size: int) -> int:
        """The size of its file."""
        return PAYLOAD_OFFSET_BYTES + self.n_tokens * token_dtype(vocab_size).itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `gptlab prepare` wrote: a folder without one is not finished."""

    tokenizer: dict[str, Any]  # type, fingerprint, vocab_size, and identity: what it was made from
    source: dict[str, Any]  # description, fingerprint, and files: name and checksum of each
    settings: dict[str, Any]  # shard_tokens val_fraction test_fraction
    documents: dict[str, Any]  # n_documents n_bytes n_characters n_tokens left_out notes lost_text
    shards: dict[str, list[Shard]]  # by split

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over the ids of all splits and the tokenizer: equal for equal data, whatever file it came from."""
        content = {part: [[shard.n_tokens, shard.sha256] for shard in shards] for part, shards in self.shards.items()}
        return _sha256([self.tokenizer["fingerprint"], content])

    def text(self) -> str:
        """The text of the manifest's file."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(content | {"checksum": _sha256(content)}, indent=1) + "\n"


Folder = Path | Place  # of shards: here, or at an address


def open_folder(path: str) -> Folder:
    """The folder of shards that a path or an address names."""
    return Place(path) if is_address(path) else Path(path).expanduser()


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of a folder of shards; UserError where there is none, or an altered one."""
    path = f"{folder}/{MANIFEST}"
    try:
        content = json.loads(_read(folder, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        if not isinstance(folder, Path):
            raise UserError(
                f"{folder} holds no manifest.json; name an address that gptlab prepare has written, or run its command "
                "again, which goes on"
            ) from None
        if any(folder.glob("*.partial")) or (folder / "progress.json").exists():
            raise UserError(f"{folder} is not finished; run its gptlab prepare command again, which goes on") from None
        what = "holds no manifest.json" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; name a folder that gptlab prepare has written") from None
    except UserError:  # which is a ValueError, and has its own remedy
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_remedy(folder)}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is not the manifest of token shards; name a folder that gptlab prepare has written")
    if content.get("version") not in _READABLE:
        raise UserError(f"{path} has version {content.get('version')}, this gptlab reads versions up to {_VERSION}")
    if content.pop("checksum", None) != _sha256(content):
        raise UserError(f"{path} was altered; {_remedy(folder)}")
    known = {name: content[name] for name in (field.name for field in fields(Manifest))}
    known["shards"] = {part: [Shard(**shard) for shard in shards] for part, shards in known["shards"].items()}
    return Manifest(**known)


def _read(folder: Folder, name: str) -> bytes:
    """A small file of the folder; FileNotFoundError where there is none."""
    if isinstance(folder, Path):
        return (folder / name).read_bytes()
    content = folder.read(name)
    if content is None:
        raise FileNotFoundError(name)
    return content


def _remedy(folder: Folder) -> str:
    return f"restore it from a copy, or delete {folder} and run gptlab prepare again"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def open_tokenizer(folder: Folder, manifest: Manifest) -> Tokenizer:
    """The tokenizer that made the shards."""
    if isinstance(folder, Path):
        tokenizer = load_tokenizer(folder / TOKENIZER)
    else:
        try:
            content = json.loads(_read(folder, TOKENIZER))
        except UserError:
            raise
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{folder}/{TOKENIZER} cannot be read ({error}); {_remedy(folder)}") from None
        tokenizer = restore_tokenizer(content, f"{folder}/{TOKENIZER}", _remedy(folder))
    if tokenizer.fingerprint != manifest.tokenizer["fingerprint"]:
        raise UserError(f"{folder}/{TOKENIZER} is not the tokenizer of the shards; {_remedy(folder)}")
    return tokenizer


def check_shard(folder: Path, manifest: Manifest, shard: Shard) -> TokenFile:
    """Open a shard; UserError where its file has not the size, the tokenizer and the checksum of the manifest.

    The ids are not read.
    """
    path, remedy = folder / shard.name, _remedy(folder)
    header = read_header(path, remedy)
    if header.tokenizer != manifest.tokenizer["fingerprint"]:
        raise UserError(
            f"{path} was made by another tokenizer (fingerprint {header.tokenizer[:16]}) than the other shards "
            f"({manifest.tokenizer['fingerprint'][:16]}); {remedy}"
        )
    if header != shard.header(manifest.tokenizer["vocab_size"], manifest.tokenizer["fingerprint"]):
        raise UserError(f"{path} is another shard than manifest.json says; {remedy}")
    return TokenFile(path, header, remedy)


def verify_shards(folder: Folder, n_threads: int) -> Iterator[tuple[Shard, UserError | None]]:
    """Each shard of a folder and what is wrong with it, after its ids were read against their checksum.

    UserError where the manifest or the tokenizer is damaged.
    """
    manifest = read_manifest(folder)
    open_tokenizer(folder, manifest)
    shards = [shard for part in manifest.shards.values() for shard in part]

    def verify(shard: Shard) -> UserError | None:
        if not isinstance(folder, Path):
            return _verify_at(folder, manifest, shard)
        try:
            check_shard(folder, manifest, shard).verify()
        except UserError as error:
            return error
        except OSError as error:
            return UserError(f"{folder / shard.name} cannot be read ({error.strerror or error})")
        return None

    with ThreadPoolExecutor(n_threads) as threads:
        yield from zip(shards, threads.map(verify, shards), strict=True)


def _verify_at(place: Place, manifest: Manifest, shard: Shard) -> UserError | None:
    from gptlab.data.remote_shards import ShardReader

    reader = ShardReader(place.url, manifest.tokenizer["vocab_size"], manifest.tokenizer["fingerprint"])
    try:
        wrong = reader.copy(shard)
    except UserError as error:
        return error
    return None if wrong is None else UserError(f"{place}/{shard.name} {wrong}")


class ShardedTokens:
    """The ids of token files one after the other, as one array that is never in memory as a whole."""

    ndim = 1

    def __init__(self, lengths: Sequence[int], dtype: np.dtype) -> None:
        self.lengths, self.dtype = list(lengths), dtype
        self._ends = list(accumulate(self.lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def shard_tokens(self) -> int:
        """The tokens of each shard but the last, which may have fewer."""
        assert all(length == self.lengths[0] for length in self.lengths[1:-1]), "shards of one size"
        return self.lengths[0]

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """Consecutive ids; a view where they are in one shard."""
        start, stop, step = wanted.indices(len(self))
        if step != 1:
            raise ValueError("shards are read in steps of 1")
        if stop <= start:
            return np.empty(0, self.dtype)
        parts = []
        number = bisect_right(self._ends, start)
        while start < stop:
            begin = self._ends[number] - self.lengths[number]
            end = min(stop, self._ends[number])
            parts.append(self._part(number, start - begin, end - begin, continued=bool(parts)))
            start, number = end, number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` ids from each of `starts` (B,) on, int64 (B, length)."""
        found = np.empty((*starts.shape, length), dtype=np.int64)
        for index, start in np.ndenumerate(starts):
            found[index] = self[int(start) : int(start) + length]
        return found

    def _part(self, number: int, begin: int, end: int, *, continued: bool) -> np.ndarray:
        """Ids of one shard; `continued`: they follow those of the shard before."""
        raise NotImplementedError


class MappedTokens(ShardedTokens):
    """The same of files on this machine, which are memory-mapped."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], dtype: np.dtype) -> None:
        super().__init__(lengths, dtype)
        self.paths = list(paths)
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()

    def _part(self, number: int, begin: int, end: int, *, continued: bool) -> np.ndarray:
        return self._map(number)[begin:end]

    def _map(self, number: int) -> np.ndarray:
        tokens = self._mapped.get(number)
        if tokens is None:
            if len(self._mapped) >= _OPEN_FILES:
                self._mapped.popitem(last=False)
            shape = (self.lengths[number],)
            mapped = np.memmap(self.paths[number], dtype=self.dtype, mode="r", offset=PAYLOAD_OFFSET_BYTES, shape=shape)
            tokens = self._mapped[number] = mapped.view(np.ndarray)
        else:
            self._mapped.move_to_end(number)
        return tokens

    def __reduce__(self):
        """Pickled by names: a worker maps the files again."""
        return MappedTokens, (self.paths, self.lengths, self.dtype)


class TokenShards:
    """The shards of one split, with what a `TokenFile` has; `tokens` is a `ShardedTokens`."""

    def __init__(self, folder: Path | str, manifest: Manifest, part: str, tokens: ShardedTokens | None = None) -> None:
        shards = manifest.shards[part]
        self.path = folder
        self._manifest, self._part = manifest, part
        self.vocab_size: int = manifest.tokenizer["vocab_size"]
        self.tokenizer: str = manifest.tokenizer["fingerprint"]
        self.n_tokens = sum(shard.n_tokens for shard in shards)
        self.n_documents = sum(shard.n_documents for shard in shards)
        self.n_bytes = sum(shard.n_bytes for shard in shards)
        self.n_characters = sum(shard.n_characters for shard in shards)
        lengths = [shard.n_tokens for shard in shards]
        if tokens is None:
            paths = [Path(folder, shard.name) for shard in shards]
            tokens = MappedTokens(paths, lengths, token_dtype(self.vocab_size))
        self.tokens = tokens
        self._ends = list(accumulate(lengths))
        self._parts: dict[int, TokenPart] = {}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, part: str, *, verify: bool = False) -> "TokenShards":
        """Open a split and compare each shard's size and header with the manifest; with `verify` its ids, too."""
        for shard in manifest.shards[part]:
            file = check_shard(folder, manifest, shard)
            if verify:
                file.verify()
        return cls(folder, manifest, part)

    @property
    def checksum(self) -> str:
        """A SHA-256 over those of the ids of its shards."""
        return _sha256([shard.sha256 for shard in self._manifest.shards[self._part]])

    def part_at(self, position: int) -> TokenPart:
        """The shard with a token of the split; not of shards at an address."""
        folder = self._folder()
        number = bisect_right(self._ends, position)
        part = self._parts.get(number)
        if part is None:
            shards = self._manifest.shards[self._part]
            # A separator is written with the document after it, so that the first document alone has none.
            n_separators = max(0, sum(shard.n_documents for shard in shards[:number]) - 1)
            file = check_shard(folder, self._manifest, shards[number])
            part = self._parts[number] = TokenPart(self._ends[number] - file.n_tokens, n_separators, file)
        return part

    def positions(self, token_id: int) -> np.ndarray:
        """Where a token stands, int64 (n,), in order, as `TokenFile.positions`; UserError for shards at an address."""
        folder = self._folder()
        found, begin = [np.empty(0, dtype=np.int64)], 0
        for shard in self._manifest.shards[self._part]:
            found.append(check_shard(folder, self._manifest, shard).positions(token_id) + begin)
            begin += shard.n_tokens
        return np.concatenate(found)

    def remembered(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """As `TokenFile.remembered`, of all shards of the split."""
        return remembered(self._folder() / f"{self._part}.{name}.npy", self._manifest.fingerprint, make)

    def _folder(self) -> Path:
        if isinstance(self.path, Path):
            return self.path
        raise UserError(
            f"{self.path} is an address, and documents are looked for in all of the text, as data.packing and "
            "objective.next_sentence=true need it; copy the shards to this machine, or leave these out"
        )

    def unigram_entropy(self) -> float:
        """As `TokenFile.unigram_entropy`."""
        starts = range(0, min(self.n_tokens, ENTROPY_TOKENS), _BLOCK_TOKENS)
        end = min(self.n_tokens, ENTROPY_TOKENS)
        return entropy_of((self.tokens[start : min(end, start + _BLOCK_TOKENS)] for start in starts), self.vocab_size)

    def __len__(self) -> int:
        return self.n_tokens

    def __reduce__(self):
        return TokenShards, (self.path, self._manifest, self._part, self.tokens)
