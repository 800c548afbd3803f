"""Documents to token shards: in parallel and in order, going on after a kill.

One process reads the documents and writes the shards, the others encode. What is written depends on the documents, the
tokenizer, the splits and the size of a shard alone. At a checkpoint everything up to a place in the source is on disk,
and progress.json says which: there a second call goes on.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.cache import cache_root
from gptlab.data.config import DataConfig, Split
from gptlab.data.curation.corpus import CuratedCorpus, open_source, without_name
from gptlab.data.encode import Encoded, Encoders
from gptlab.data.prepare import JOB_CHARACTERS, learn_vocabulary, n_cores
from gptlab.data.progress import ShardProgress
from gptlab.data.shard_writer import PARTIAL, ShardWriter
from gptlab.data.sources.remote import Place
from gptlab.data.sources.source import Corpus, Document, records_without_text
from gptlab.data.split import hash_bounds, parts_of, unit_of
from gptlab.data.token_shards import MANIFEST, TOKENIZER, Manifest, check_shard, read_manifest
from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.data.tokenizers.cutting import LONG_CHARACTERS
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, lost_text
from gptlab.data.tokenizers.training import between_words
from gptlab.errors import UserError, refuse_password
from gptlab.fields import shown
from gptlab.files import FOLDER_LOCK, TEMPORARY_SUFFIX, is_address, locked, write_text_atomic

PROGRESS = "progress.json"
_SOURCE = "source.json"
_VERSION = 1
_HELD_CHARACTERS = 1 << 20  # of a document that is in memory between hashing and encoding; a longer one is read again
_SMALL_CORPUS_BYTES = 4_000_000
_COMPARED_CHARACTERS = 1_000_000
_OURS = re.compile(r"(train|val|test)-\d+\.bin|tokenizer\.json|\..*\.tmp")  # at an address before there is a manifest
_CHECKPOINT_SECONDS = 30


def prepare_shards(
    data: DataConfig, tokenizer: TokenizerConfig, folder: str | Path, *, shard_tokens: int, progress: bool = False
) -> Manifest:
    """Write a corpus as token shards of `shard_tokens` tokens (the last of a split has fewer) into a folder.

    A document's split follows from a hash of its text, so equal documents are in one. The ids of a split are those of
    one token file of its documents, cut where a shard is full. An interrupted call is continued by the same call; a
    finished folder is left as it is. UserError for a folder with anything else, and for a source that has changed.
    """
    data.check()
    tokenizer.check()
    if shard_tokens < 1:
        raise UserError(f"shard_tokens={shard_tokens} must be at least 1")
    if Split(data.split) is not Split.document:
        raise UserError("shards are split by document, by a hash of its text; leave data.split=fraction out")
    corpus = open_source(data, progress=progress)
    if not isinstance(corpus, Corpus):
        raise UserError(f"data={data.type} has records, and shards are made of text; use data=text or data=huggingface")
    if is_address(str(folder)):
        return _prepare_at(str(folder), data, tokenizer, corpus, shard_tokens, progress)
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made ({error.strerror}); name another with to=") from None
    try:
        with locked(path, wait=False):
            return _Preparation(data, tokenizer, path, corpus, shard_tokens, progress).run()
    except BlockingIOError:
        raise UserError(f"another process prepares {path}; wait for it, or name another folder with to=") from None


def _prepare_at(
    url: str, data: DataConfig, tokenizer: TokenizerConfig, corpus: Corpus, shard_tokens: int, progress: bool
) -> Manifest:
    """Write into a folder of the cache, from which each shard goes to the address when it is full."""
    refuse_password("to", url)
    place, root = Place(url), cache_root(data.cache_dir)
    work = _work_folder(url, root)
    work.mkdir(parents=True, exist_ok=True)
    (root / "locks").mkdir(exist_ok=True)
    try:
        with locked(root / "locks" / f"prepare-{work.name}.lock", wait=False):
            try:
                manifest = _Preparation(data, tokenizer, work, corpus, shard_tokens, progress, place).run()
                shutil.rmtree(work)
                return manifest
            finally:
                with suppress(OSError):  # it is not empty, or gone
                    work.rmdir()
    except BlockingIOError:
        raise UserError(f"another process prepares {place}; wait for it, or name another address with to=") from None


def _work_folder(url: str, root: Path) -> Path:
    return root / "prepare" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def is_begun(folder: str, cache_dir: str | None) -> bool:
    """Whether an interrupted call has written to a folder or an address, as far as this machine knows."""
    path = _work_folder(folder, cache_root(cache_dir)) if is_address(folder) else Path(folder).expanduser()
    return (path / PROGRESS).exists()


class _Cursor(NamedTuple):
    """Up to where the source is written: so many documents of a section, and characters of the next."""

    section: int = 0
    number: int = 0
    chain: str = ""  # a SHA-256 over the documents of the section before, to know them again
    n_characters: int = 0
    digest: str = ""  # of the document with these characters
    n_empty: int = 0  # documents without text so far


class _Measured(NamedTuple):
    """A document and what its split follows from."""

    document: Document
    digest: bytes
    n_bytes: int
    n_characters: int
    texts: Callable[[], Iterator[str]]
    chain_before: str  # over the documents of its section before it
    chain: str  # with it


@dataclass(slots=True)
class _Run:
    """Consecutive texts of a job for one split; `begun` has bytes and characters of a document that begins there."""

    part: str
    n_texts: int
    begun: tuple[int, int] | None


@dataclass(slots=True)
class _Job:
    texts: list[str | int] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)
    n_characters: int = 0
    n_bytes: float = 0.0
    end: _Cursor = _Cursor()  # noqa: RUF009 (it cannot be changed)


class _Preparation:
    def __init__(
        self,
        data: DataConfig,
        config: TokenizerConfig,
        folder: Path,
        corpus: Corpus,
        shard_tokens: int,
        progress: bool,
        place: Place | None = None,
    ) -> None:
        self._place = place
        self._shown = str(place or folder)
        self._data, self._config, self._folder, self._corpus = data, config, folder, corpus
        self._shard_tokens, self._progress = shard_tokens, progress
        self._settings = {
            "shard_tokens": shard_tokens,
            "val_fraction": data.val_fraction,
            "test_fraction": data.test_fraction,
        }
        self._identity = {"type": config.type, "identity": config.identity()}
        self._bounds = (0.0, 0.0)
        self._lost_text: str | None = None
        self._cursor = _Cursor()
        self._begun: set[str] = set()  # splits with a document

    def run(self) -> Manifest:
        if self._place is not None and (manifest := self._finished_at(self._place)) is not None:
            return manifest
        if self._place is None and (self._folder / MANIFEST).exists():
            manifest = read_manifest(self._folder)
            self._refuse_others(manifest.settings, manifest.tokenizer, manifest.source)
            for part in manifest.shards.values():
                for shard in part:
                    check_shard(self._folder, manifest, shard)
            self._tidy({shard.name for part in manifest.shards.values() for shard in part})
            return manifest
        going_on = (self._folder / PROGRESS).exists()
        if not going_on:
            self._refuse_foreign_files()
        with ExitStack() as stack:
            # The errors of a tokenizer that needs no training come before any work.
            tokenizer = load_tokenizer(self._folder / TOKENIZER) if going_on else self._tokenizer()
            writers = {
                part: stack.enter_context(ShardWriter(self._folder, part, tokenizer, self._shard_tokens, self._place))
                for part in parts_of(self._data)
            }
            if going_on:
                self._go_on(writers, tokenizer)
            else:
                tokenizer.save(self._folder / TOKENIZER)
                if self._place is not None:
                    self._place.upload(self._folder / TOKENIZER, TOKENIZER)
                write_text_atomic(self._folder / _SOURCE, json.dumps(self._described()))
                self._checkpoint(writers)
            self._encode(tokenizer, writers)
            return self._finish(tokenizer, writers)

    # what is in the folder

    def _finished_at(self, place: Place) -> Manifest | None:
        sizes_bytes = place.sizes_bytes()
        if MANIFEST not in sizes_bytes:
            others = sorted(name for name in sizes_bytes if not _OURS.fullmatch(name))
            if others:
                raise UserError(f"{place} holds other files, such as {others[0]}; name an empty folder with to=")
            return None
        manifest = read_manifest(place)
        self._refuse_others(manifest.settings, manifest.tokenizer, manifest.source)
        for shard in (shard for part in manifest.shards.values() for shard in part):
            if sizes_bytes.get(shard.name) != shard.size_bytes(manifest.tokenizer["vocab_size"]):
                raise UserError(f"{place}/{shard.name} is missing or truncated; delete {place} and prepare it again")
        return manifest

    def _described(self) -> dict[str, Any]:
        source: dict[str, Any] = {"description": self._corpus.description, "fingerprint": self._corpus.fingerprint}
        if isinstance(self._corpus, CuratedCorpus):
            source["filters"] = [
                {**one, "counts": asdict(counts)}
                for one, counts in zip(self._corpus.filters, self._corpus.counts, strict=True)
            ]
        return {
            "version": _VERSION,
            "settings": self._settings,
            "tokenizer": self._identity,
            "source": source | {"files": [list(section) for section in self._corpus.sections]},
            "hash_bounds": self._bounds,
            "lost_text": self._lost_text,
        }

    def _refuse_others(
        self, settings: dict[str, Any], tokenizer: dict[str, Any], source: dict[str, Any], n_sections: int | None = None
    ) -> None:
        """Refuse what was prepared otherwise; of a source the first `n_sections` count, None: all of it."""
        found = []
        for name, value in self._settings.items():
            if settings.get(name) != value:
                key = name if name == "shard_tokens" else f"data.{name}"
                found.append(f"{key}={shown(settings.get(name))}, not {shown(value)}")
        if {name: tokenizer.get(name) for name in self._identity} != self._identity:
            found.append(f"another tokenizer ({tokenizer.get('type')}, or another vocabulary or options)")
        if other_filters := self._other_filters(source):
            found.append(other_filters)
        now, before = [list(section) for section in self._corpus.sections], source["files"]
        same_files = bool(other_filters) and now == before  # what differs is the filters alone
        if n_sections is None and source["fingerprint"] != self._corpus.fingerprint and not same_files:
            names = {name for name, _ in now} ^ {name for name, _ in before}
            names |= {name for name, key in now if [name, key] not in before} if not names else set()
            which = f", such as {min(names)}" if names else ""
            found.append(f"another source ({source['description']}, or its files have changed{which})")
        elif n_sections is not None and now[:n_sections] != before[:n_sections]:
            changed = next((b[0] for b, n in zip(before, [*now, *[None] * n_sections], strict=False) if b != n), "")
            found.append(f"files that were read already and have changed, such as {changed}")
        elif (
            n_sections is not None and not now and source["fingerprint"] != self._corpus.fingerprint and not same_files
        ):
            found.append(f"another source ({source['description']})")
        if found:
            raise UserError(
                f"{self._shown} was prepared with {' and '.join(found)}; name another folder with to=, or delete it"
            )

    def _other_filters(self, source: dict[str, Any]) -> str:
        """How the filters of a source differ from those of this one, for a person; empty where they do not."""
        now = self._corpus.filters if isinstance(self._corpus, CuratedCorpus) else []
        before = [{key: value for key, value in one.items() if key != "counts"} for one in source.get("filters", ())]
        if [without_name(one) for one in now] == [without_name(one) for one in before]:
            return ""
        names = [[one["name"] for one in filters] for filters in (before, now)]
        if names[0] != names[1]:
            return "data.filters {}, not {}".format(*(" ".join(listed) or "none" for listed in names))
        for one, other in zip(before, now, strict=True):
            for key in [*one, *other]:
                if one.get(key) != other.get(key):
                    return f"data.filters.{one['name']}.{key}={shown(one.get(key))}, not {shown(other.get(key))}"
        return ""

    def _refuse_foreign_files(self) -> None:
        ours = {FOLDER_LOCK, TOKENIZER, _SOURCE}
        others = sorted(
            path.name
            for path in self._folder.iterdir()
            if path.name not in ours and not path.name.endswith((PARTIAL, TEMPORARY_SUFFIX))
        )
        if others:
            raise UserError(
                f"{self._folder} holds other files, such as {others[0]}; name a new folder with to=, or an empty one"
            )

    def _tidy(self, names: set[str]) -> None:
        """Remove what a killed process left."""
        for path in self._folder.iterdir():
            finished = (self._folder / MANIFEST).exists() and path.name in (PROGRESS, _SOURCE)
            left = path.name.endswith(PARTIAL) and path.name.removesuffix(PARTIAL) not in names
            if finished or left or path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink()

    def _go_on(self, writers: dict[str, "ShardWriter"], tokenizer: Tokenizer) -> None:
        try:
            before = json.loads((self._folder / _SOURCE).read_text(encoding="utf-8"))
            progress = json.loads((self._folder / PROGRESS).read_text(encoding="utf-8"))
            cursor = _Cursor(*progress["cursor"])
            state = {part: progress["parts"][part] for part in writers}
            self._bounds, self._lost_text = tuple(before["hash_bounds"]), before["lost_text"]
            same_version = before["version"] == _VERSION
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"what {self._folder} says of its progress is damaged ({error}); delete it") from None
        if not same_version:
            raise UserError(f"{self._folder} was begun by another version of gptlab; delete it")
        self._refuse_others(before["settings"], before["tokenizer"], before["source"], cursor.section)
        if before["source"]["fingerprint"] != self._corpus.fingerprint:  # what is still to be read has changed
            bounds = self._bounds  # vocabulary and splits follow from all of the text
            if self._tokenizer().fingerprint != tokenizer.fingerprint or self._bounds != bounds:
                raise UserError(
                    f"files of {self._corpus.description} have changed since {self._folder} was begun, and with them "
                    "the splits or the vocabulary; name another folder with to=, or delete it"
                )
            write_text_atomic(self._folder / _SOURCE, json.dumps(self._described()))
        self._cursor, self._begun = cursor, set(progress["begun"])
        self._tidy({shard for writer in writers.values() for shard in writer.restore(state[writer.part])})

    def _checkpoint(self, writers: dict[str, "ShardWriter"]) -> None:
        states = {part: writer.synced() for part, writer in writers.items()}
        content = {"cursor": list(self._cursor), "begun": sorted(self._begun), "parts": states}
        write_text_atomic(self._folder / PROGRESS, json.dumps(content))
        for writer in writers.values():
            writer.publish()

    def _finish(self, tokenizer: Tokenizer, writers: dict[str, "ShardWriter"]) -> Manifest:
        for writer in writers.values():
            writer.end()
        self._checkpoint(writers)
        shards = {part: writer.finished for part, writer in writers.items()}
        every = [shard for part in shards.values() for shard in part]
        totals = {
            f"n_{name}": sum(getattr(shard, f"n_{name}") for shard in every)
            for name in ("documents", "bytes", "characters", "tokens")
        }
        left_out = [*self._corpus.left_out]
        if self._cursor.n_empty:
            left_out.append(records_without_text(self._cursor.n_empty))
        described = self._described()
        manifest = Manifest(
            tokenizer=self._identity | {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            source=described["source"],
            settings=self._settings,
            documents={
                **totals,
                "hash_bounds": list(self._bounds),
                "left_out": left_out,
                "notes": list(tokenizer.notes),
                "lost_text": self._lost_text,
            },
            shards=shards,
        )
        write_text_atomic(self._folder / MANIFEST, manifest.text())
        if self._place is not None:
            self._place.upload(self._folder / MANIFEST, MANIFEST)
        self._tidy(set())
        return manifest

    # the source

    def _documents(self, cursor: _Cursor) -> Iterator[_Measured]:
        """The documents from a cursor on; UserError where those before it are not what they were."""
        section, chain, n_before = cursor.section, "", 0
        is_checked = False  # that what stands before the cursor is what was there
        changed = UserError(
            f"{self._corpus.description} has changed where it was read already; delete {self._folder}, or name another "
            "folder with to="
        )
        for document in self._corpus.documents_from(cursor.section):
            if not is_checked and (document.section > section or document.number >= cursor.number):
                is_checked = True
                if (n_before, chain) != (cursor.number, cursor.chain):
                    raise changed
            if document.section > section:
                section, chain = document.section, ""
            measured = _measure(document, chain)
            chain = measured.chain
            if not is_checked:
                n_before += 1
            elif cursor.digest and document[:2] == cursor[:2] and measured.digest.hex() != cursor.digest:
                raise changed
            else:
                yield measured
        if not is_checked and (n_before, chain) != (cursor.number, cursor.chain):
            raise changed

    def _part_of(self, digest: bytes) -> str:
        unit = unit_of(digest)
        return "val" if unit < self._bounds[0] else "test" if unit < self._bounds[1] else "train"

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer, a trained one learned from the text; finds the bounds of the splits, and what it loses."""
        tokenizer = None if self._config.trained else self._config.build(lambda: iter(()))
        units = (unit_of(one.digest) for one in self._documents(_Cursor()) if one.n_characters)
        first = next(units, None)
        if first is None:
            raise UserError(f"{self._corpus.description} holds no text; name another with data.path=")
        self._bounds = hash_bounds(self._data, chain([first], units))

        def texts() -> Iterator[str]:
            for one in self._documents(_Cursor()):
                if self._config.all_splits or self._part_of(one.digest) == "train":
                    yield from between_words(one.texts())

        tokenizer = tokenizer or learn_vocabulary(self._config, texts, progress=self._progress)
        if not tokenizer.is_lossless:
            self._lost_text = self._loss_of(tokenizer)
        return tokenizer

    def _loss_of(self, tokenizer: Tokenizer) -> str | None:
        n_characters = 0
        for one in self._documents(_Cursor()):
            for text in tokenizer.chunks(one.texts()):
                lost = lost_text(text, tokenizer.decode(tokenizer.encode(text)))
                n_characters += len(text)
                if lost is not None or n_characters >= _COMPARED_CHARACTERS:
                    return lost
        return None

    # the work

    def _encode(self, tokenizer: Tokenizer, writers: dict[str, "ShardWriter"]) -> None:
        n_processes = self._data.n_processes or n_cores()
        # Starting a process costs as much as tokenizing a few megabytes.
        if 0 < self._corpus.n_bytes < _SMALL_CORPUS_BYTES or tokenizer.one_process:
            n_processes = 1
        n_before = sum(writer.n_tokens for writer in writers.values())
        progress = ShardProgress(self._corpus.n_bytes, n_before, show=self._progress)
        newest = time.monotonic()
        is_whole = True  # what is written ends at the cursor
        try:
            with Encoders(tokenizer, n_processes) as encoders:
                for job, encoded in encoders.map(self._jobs(tokenizer)):
                    is_whole = False
                    self._write(job, encoded, writers)
                    self._cursor = job.end
                    is_whole = True
                    progress.update(self._corpus.n_bytes_read, job.n_bytes, len(encoded.ids))
                    now = time.monotonic()
                    if any(writer.is_full for writer in writers.values()) or now - newest > _CHECKPOINT_SECONDS:
                        self._checkpoint(writers)
                        newest = now
        except BaseException:
            if is_whole:
                with suppress(OSError, UserError):  # the error that is on its way says more
                    self._checkpoint(writers)
            raise
        finally:
            progress.close()

    def _jobs(self, tokenizer: Tokenizer) -> Iterator[_Job]:
        job, cursor = _Job(), self._cursor
        n_empty, begun = cursor.n_empty, set(self._begun)
        for one in self._documents(cursor):
            document = one.document
            here = (document.section, document.number)
            n_done = cursor.n_characters if here == (cursor.section, cursor.number) else 0
            part = self._part_of(one.digest)
            if one.n_characters:
                run = _Run(part, 0, None if n_done else (one.n_bytes, one.n_characters))
                job.runs.append(run)
                if run.begun and part in begun and tokenizer.eot is not None:
                    job.texts.append(tokenizer.eot)
                    run.n_texts += 1
                begun.add(part)
                for text in _chunks(one, n_done, tokenizer):
                    job.texts.append(text)
                    run.n_texts += 1
                    n_done += len(text)
                    job.n_characters += len(text)
                    job.n_bytes += one.n_bytes * len(text) / one.n_characters
                    if job.n_characters >= JOB_CHARACTERS:
                        job.end = _Cursor(*here, one.chain_before, n_done, one.digest.hex(), n_empty)
                        yield job
                        run = _Run(part, 0, None)
                        job = _Job(runs=[run], end=job.end)
            else:
                n_empty += 1
            job.end = _Cursor(document.section, document.number + 1, one.chain, 0, "", n_empty)
        if job.end != _Cursor():
            yield job

    def _write(self, job: _Job, encoded: Encoded, writers: dict[str, "ShardWriter"]) -> None:
        begin = position = 0
        for run in job.runs:
            writer = writers[run.part]
            if run.begun is not None:
                writer.begin_document(*run.begun)
                self._begun.add(run.part)
            end = begin + run.n_texts
            n = sum(encoded.sizes[begin:end])
            writer.write(encoded.ids[position : position + n])
            begin, position = end, position + n


def _measure(document: Document, chain: str) -> _Measured:
    """Hash a document; a long one is read here and again later, so that it is never in memory."""
    digest = hashlib.sha256()
    n_bytes = n_characters = 0
    held: list[str] | None = []
    for text in document.texts():
        data = text.encode("utf-8", "surrogatepass")
        digest.update(data)
        n_bytes += len(data)
        n_characters += len(text)
        if held is not None:
            held.append(text)
            if n_characters > _HELD_CHARACTERS:
                held = None
    own = digest.digest()
    texts = document.texts if held is None else held.__iter__
    after = hashlib.sha256(bytes.fromhex(chain) + own).hexdigest()
    return _Measured(document, own, n_bytes, n_characters, texts, chain, after)


def _chunks(one: _Measured, n_done: int, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a document after so many characters, cut where encoding the parts gives the ids of the whole."""
    if n_done == 0 and one.n_characters < LONG_CHARACTERS:
        return iter(["".join(one.texts())])
    return tokenizer.chunks(_without(one.texts(), n_done))


def _without(texts: Iterator[str], n_characters: int) -> Iterator[str]:
    for text in texts:
        if n_characters < len(text):
            yield text[n_characters:]
        n_characters = max(0, n_characters - len(text))
