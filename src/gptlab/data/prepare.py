"""Text to token files: split, tokenized, cached by content."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gptlab.data.cache import cache_lock, cache_root
from gptlab.data.config import DataConfig, Split, TargetKind
from gptlab.data.curation.corpus import open_source
from gptlab.data.encode import Encoded, EncodeJob, Encoders
from gptlab.data.examples.example_table import (
    ExampleFormat,
    ExampleTable,
    ExampleTableWriter,
    open_example_tables,
    write_example_format,
)
from gptlab.data.examples.records import Example, SpooledExamples, n_bytes, resolve
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import DownloadConfig, ShardsConfig, StdlibConfig, TableConfig, TextConfig
from gptlab.data.sources.download import is_downloaded
from gptlab.data.sources.source import Corpus, RecordSource, SpooledCorpus, TextChunk
from gptlab.data.split import (
    PartOf,
    by_document,
    cut_into_parts,
    measure,
    parts_of,
    split_documents,
    split_examples,
)
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.token_shards import Folder, Manifest, TokenShards, open_folder, read_manifest
from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer, lost_text
from gptlab.data.tokenizers.training import between_words
from gptlab.errors import UserError
from gptlab.files import is_address
from gptlab.registry import variants
from gptlab.units import plural

_VERSION = 2
JOB_CHARACTERS = 1 << 18
_SMALL_CORPUS_BYTES = 4_000_000
_COMPARED_CHARACTERS = 1_000_000  # of each split


@dataclass(kw_only=True, slots=True)
class PreparedData:
    """A corpus as token files; `val` and `test` are None where their fraction is 0.

    `examples` has each split's examples where the source has records, and is empty where it has documents.
    """

    tokenizer: Tokenizer
    train: TokenFile | TokenShards
    val: TokenFile | TokenShards | None
    test: TokenFile | TokenShards | None
    fingerprint: str  # sha256 over the corpus's content, the tokenizer and the split
    inputs: dict[str, str]  # as `inputs_of` gives them
    folder: Path
    description: str
    examples: dict[str, ExampleTable] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a person should know of how the text was read
    lost_text: str | None = None  # why there are no bits per byte: what encoding and decoding lose; None: nothing
    chat_template: str | None = None  # the text of `data.chat_template`

    def part(self, name: str) -> TokenFile | TokenShards | None:
        """The split `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def corpora(self) -> "dict[str, PreparedData]":
        """Each corpus by its name: of a mixture its sources, and otherwise this one, which has none."""
        return {"": self}

    def n_tokens(self, name: str) -> int:
        """The tokens of a split, 0 where it is None."""
        part = self.part(name)
        return 0 if part is None else part.n_tokens

    def existing_part(self, name: str) -> TokenFile | TokenShards:
        """The same, of a split that is known to have a part of the text."""
        part = self.part(name)
        assert part is not None, f"the {name} split is empty"
        return part


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, *, progress: bool = True, verify: bool | None = None
) -> PreparedData:
    """The token files of a corpus, made on the first call and found in the cache afterwards.

    Every rank calls it: of the processes that share a cache, the first reads the corpus and writes the token files
    while the others wait, and then all open them. What follows the first call costs a stat per file of the corpus. The
    ranks agree where they have one `fingerprint`. An error or a kill leaves no half-written folder. `verify=True` reads
    the token files against their checksums again (see `TokenFile.open`).
    """
    data.check()
    tokenizer.check()
    if isinstance(data, ShardsConfig):
        return _open_shards(data, tokenizer, verify=bool(verify))
    corpus = open_source(data, progress=progress)
    if isinstance(corpus, RecordSource) and not isinstance(data, TableConfig):
        raise TypeError(f"data={data.type} gives records; its config {type(data).__name__} has to extend TableConfig")
    chat_template = _chat_template(data)
    fingerprint = _fingerprint(data, tokenizer, corpus, chat_template)
    inputs = _inputs(tokenizer, corpus.fingerprint, chat_template)
    root = cache_root(data.cache_dir)
    folder = root / f"{data.type}-{fingerprint[:16]}"
    made = None
    if not folder.is_dir():
        with cache_lock(root, folder.name):
            if not folder.is_dir():
                # Under the lock the name is ours alone: whatever a killed process left there can go.
                partial = root / f".{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    if isinstance(corpus, RecordSource):
                        assert isinstance(data, TableConfig)
                        made = _build_examples(partial, data, tokenizer, corpus, progress=progress)
                    else:
                        made = _build(partial, data, tokenizer, corpus, progress=progress)
                    os.rename(partial, folder)
                    _open_files(folder, data)  # verified under the lock, once for all that wait
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    prepared = _load(folder, data, corpus, fingerprint, inputs, made, verify)
    prepared.chat_template = chat_template
    return prepared


def learn_tokenizer(data: DataConfig, config: TokenizerConfig, *, progress: bool = True) -> Tokenizer:
    """The tokenizer that `prepare` learns from the training split, without making token files; nothing is kept.

    UserError for a table of examples, and for a tokenizer that is not learned.
    """
    data.check()
    config.check()
    if not config.trained:
        raise UserError(f"tokenizer={config.type} is not learned from text; {_learned_tokenizers()}")
    corpus = open_source(data, progress=progress)
    if isinstance(corpus, RecordSource):
        raise UserError(f"data={data.type} has examples, and a tokenizer is learned from documents; use data=text")
    with TemporaryDirectory(dir=cache_root(data.cache_dir), prefix=".tokenizer-") as folder:
        if corpus.slow:
            corpus = SpooledCorpus(corpus, Path(folder) / "spool", progress=progress)
        part_of = split_documents(data, measure(corpus))
        texts = partial(training_texts, corpus, part_of, all_splits=config.all_splits)
        return learn_vocabulary(config, texts, progress=progress)


def _learned_tokenizers() -> str:
    names = [name for name, config in variants("tokenizer").items() if config.trained]
    return f"use tokenizer={' or tokenizer='.join(names)}"


def known_tokens(data: DataConfig, tokenizer: TokenizerConfig) -> int | None:
    """The tokens of the training split of a text that `prepare` has prepared before; None where it has not.

    Nothing is tokenized or downloaded, and of a text that was read before nothing is read again.
    """
    offline = (
        isinstance(data, StdlibConfig)
        or (isinstance(data, TextConfig) and not any(map(is_address, [data.path or "", *data.paths])))
        or (isinstance(data, DownloadConfig) and is_downloaded(data))
    )
    if isinstance(data, ShardsConfig):
        if data.is_remote:
            return None
        return sum(shard.n_tokens for shard in _manifest(data).shards["train"])
    root = cache_root(data.cache_dir)
    if not offline or not any(root.glob(f"{data.type}-*/")):
        return None
    folder = root / f"{data.type}-{_fingerprint(data, tokenizer, open_source(data, progress=False))[:16]}"
    return TokenFile.open(folder / "train.bin").n_tokens if folder.is_dir() else None


def inputs_of(data: DataConfig, tokenizer: TokenizerConfig) -> dict[str, str]:
    """A SHA-256 of each thing that `prepare` reads, by the key that a user knows it by; no token is made."""
    data.check()
    tokenizer.check()
    if isinstance(data, ShardsConfig):
        return _inputs(tokenizer, _manifest(data).fingerprint, None)
    return _inputs(tokenizer, open_source(data, progress=False).fingerprint, _chat_template(data))


def _inputs(tokenizer: TokenizerConfig, content: str, chat_template: str | None) -> dict[str, str]:
    inputs = {"data": content, "tokenizer": _sha256(tokenizer.identity())}
    return inputs if chat_template is None else inputs | {"data.chat_template": _sha256(chat_template)}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _chat_template(data: DataConfig) -> str | None:
    if not isinstance(data, TableConfig) or data.chat_template is None:
        return None
    from gptlab.data.examples.chat_template import read_chat_template

    return read_chat_template(data.chat_template)


def _fingerprint(
    data: DataConfig, tokenizer: TokenizerConfig, corpus: Corpus | RecordSource, chat_template: str | None = None
) -> str:
    split = [Split(data.split).value, data.val_fraction, data.test_fraction]
    key = {"version": _VERSION, "corpus": corpus.fingerprint, "tokenizer": tokenizer.identity(), "split": split}
    if isinstance(corpus, RecordSource):
        fields = ("prompt", "response", "label_column", "class_names", "drop_unknown_classes", "messages", "chat")
        key["examples"] = {name: getattr(data, name) for name in fields}
        if chat_template is not None:
            key["examples"]["chat_template"] = chat_template
    return _sha256(key)


def _open_files(folder: Path, data: DataConfig, verify: bool | None = None) -> dict[str, TokenFile]:
    return {part: TokenFile.open(folder / f"{part}.bin", verify=verify) for part in parts_of(data)}


def _load(
    folder: Path,
    data: DataConfig,
    corpus: Corpus | RecordSource,
    fingerprint: str,
    inputs: dict[str, str],
    made: Tokenizer | None,
    verify: bool | None,
) -> PreparedData:
    tokenizer = made or load_tokenizer(folder / "tokenizer.json")
    files = _open_files(folder, data, verify)
    for part, file in files.items():
        if file.tokenizer != tokenizer.fingerprint:
            raise UserError(
                f"{folder}: {part}.bin belongs to another tokenizer than tokenizer.json; delete it and run again"
            )
    has_records = isinstance(corpus, RecordSource)
    try:
        sizes = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        what = ("record" if has_records else "document") + "s" * (sizes["n_documents"] != 1)
        size = f"{sizes['n_documents']:,} {what}, {sizes['n_bytes']:,} bytes"
        size += "".join(f", without {left_out}" for left_out in sizes["left_out"])
        notes, lost_text = list(sizes["notes"]), sizes["lost_text"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/corpus.json is missing or altered; delete the folder and run again") from None
    return PreparedData(
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        inputs=inputs,
        folder=folder,
        description=f"{corpus.description}: {size}, content {corpus.fingerprint[:16]}",
        examples=open_example_tables(folder, files, verify=verify) if has_records else {},
        train=files["train"],
        val=files.get("val"),
        test=files.get("test"),
        notes=notes,
        lost_text=lost_text,
    )


def _manifest(data: ShardsConfig) -> Manifest:
    return read_manifest(open_folder(data.path or ""))


def _open_shards(data: ShardsConfig, config: TokenizerConfig, *, verify: bool) -> PreparedData:
    folder = open_folder(data.path or "")
    manifest = read_manifest(folder)
    made_by = f"{folder} was tokenized with {manifest.tokenizer['type']}"
    if config.trained:
        raise UserError(f"{made_by}, and tokenizer={config.type} would learn another vocabulary; leave tokenizer= out")
    tokenizer = config.build(_no_texts)
    if tokenizer.fingerprint != manifest.tokenizer["fingerprint"]:
        given = f"tokenizer={config.type} has fingerprint {tokenizer.fingerprint[:16]}"
        raise UserError(
            f"{made_by} (fingerprint {manifest.tokenizer['fingerprint'][:16]}), and {given}; leave tokenizer= out"
        )
    files = {}
    for part, fraction in (("train", 1), ("val", data.val_fraction), ("test", data.test_fraction)):
        if part in manifest.shards and fraction != 0:
            files[part] = _open_part(data, folder, manifest, part, verify=verify)
        elif part == "val" and fraction != 0:
            raise UserError(f"{folder} has no validation split; set data.val_fraction=0 to train without")
    found = manifest.documents
    n_shards = sum(map(len, manifest.shards.values()))
    size = f"{plural(found['n_documents'], 'document')}, {found['n_bytes']:,} bytes"
    return PreparedData(
        tokenizer=tokenizer,
        fingerprint=manifest.fingerprint,
        inputs=_inputs(config, manifest.fingerprint, None),
        folder=Path(str(folder)),
        description=f"{plural(n_shards, 'shard')} in {data.path} of {manifest.source['description']}: {size}, content "
        f"{manifest.fingerprint[:16]}",
        train=files["train"],
        val=files.get("val"),
        test=files.get("test"),
        notes=list(found["notes"]),
        lost_text=found["lost_text"],
    )


def _open_part(data: ShardsConfig, folder: Folder, manifest: Manifest, part: str, *, verify: bool) -> TokenShards:
    if isinstance(folder, Path):
        return TokenShards.open(folder, manifest, part, verify=verify)
    from gptlab.data.remote_shards import GIB, FetchedTokens, ShardReader, check_room

    # Nothing is read yet: each shard is compared with the manifest when it arrives.
    reader = ShardReader(folder.url, manifest.tokenizer["vocab_size"], manifest.tokenizer["fingerprint"])
    tokens = FetchedTokens(reader, manifest.shards[part], data.cache_dir, int(data.cache_gib * GIB))
    check_room(tokens, (data.window_shards or 1) if part == "train" else 1, data.cache_gib, data.cache_dir)
    return TokenShards(folder.shown, manifest, part, tokens)


def _build(folder: Path, data: DataConfig, config: TokenizerConfig, corpus: Corpus, *, progress: bool) -> Tokenizer:
    if corpus.slow:
        corpus = SpooledCorpus(corpus, folder / "spool", progress=progress)
    with ExitStack() as stack:
        # The errors of a tokenizer that needs no training come before any work, and its workers start meanwhile.
        tokenizer = None if config.trained else config.build(_no_texts)
        encoders = None if tokenizer is None else _start(stack, folder, tokenizer, data, corpus.n_bytes)
        sizes = measure(corpus)
        part_of = split_documents(data, sizes)

        texts = partial(training_texts, corpus, part_of, all_splits=config.all_splits)
        tokenizer = tokenizer or learn_vocabulary(config, texts, progress=progress)
        encoders = encoders or _start(stack, folder, tokenizer, data, corpus.n_bytes)
        writers = _writers(stack, folder, tokenizer, data)
        advance = stack.enter_context(byte_progress("tokenizing", sizes.n_bytes, show=progress))
        lost = _LostText(tokenizer)
        for job, encoded in encoders.map(_jobs(cut_into_parts(corpus.chunks(), part_of), tokenizer)):
            writer = writers[job.part]
            writer.write(encoded.ids)
            lost.compare(job, encoded)
            writer.end_documents(job.n_documents, n_bytes=job.n_bytes, n_characters=job.n_characters)
            advance(job.n_bytes)
    (folder / "spool").unlink(missing_ok=True)
    _write_sizes(
        folder,
        len(sizes.characters),
        sizes.n_bytes,
        left_out=corpus.left_out,
        notes=tokenizer.notes,
        lost_text=lost.example,
    )
    return tokenizer


def _build_examples(
    folder: Path, data: TableConfig, config: TokenizerConfig, source: RecordSource, *, progress: bool
) -> Tokenizer:
    tokenizer = None if config.trained else config.build(_no_texts)  # its errors come before any work
    examples = spool_examples(data, config, tokenizer, source, folder / "spool", progress=progress)
    part_of = split_examples(data, examples.hashes)

    texts = partial(texts_of_examples, examples, part_of, all_splits=config.all_splits)
    tokenizer = tokenizer or learn_vocabulary(config, texts, progress=progress)
    if tokenizer.eot is None and data.target_kind is not TargetKind.label:
        raise UserError(
            f"tokenizer={config.type} has no end-of-text token, which ends each response of data={data.type}; use "
            "another, such as tokenizer=bpe"
        )
    beginning = tokenizer.beginning if data.chat_template is None else ()  # a chat template writes its own
    with ExitStack() as stack:
        encoders = _start(stack, folder, tokenizer, data, examples.n_bytes)
        writers = _writers(stack, folder, tokenizer, data)
        tables = {part: ExampleTableWriter() for part in writers}
        advance = stack.enter_context(byte_progress("tokenizing", examples.n_bytes, show=progress))
        lost = _LostText(tokenizer)
        for job, encoded in encoders.map(_example_jobs(examples, part_of, tokenizer)):
            writer = writers[job.part]
            writer.write(_add_examples(job.examples, encoded, beginning, tables[job.part]))
            lost.compare(job, encoded)
            writer.end_documents(job.n_documents, n_bytes=job.n_bytes, n_characters=job.n_characters)
            advance(job.n_bytes)
    about = ExampleFormat(form=data.target_kind.value, n_beginning=len(beginning), has_end=tokenizer.eot is not None)
    write_example_format(folder, about, {part: table.save(folder, part) for part, table in tables.items()})
    (folder / "spool").unlink()
    _write_sizes(
        folder,
        len(examples),
        examples.n_bytes,
        left_out=examples.left_out,
        notes=[*tokenizer.notes, *examples.notes(config.type)],
        lost_text=lost.example,
    )
    return tokenizer


def spool_examples(
    data: TableConfig,
    config: TokenizerConfig,
    tokenizer: Tokenizer | None,
    source: RecordSource,
    file: Path,
    *,
    progress: bool,
) -> SpooledExamples:
    """The examples of a table, read into a file; `tokenizer` is None where it learns from them."""
    chat_tokens = (tokenizer or config).chat_tokens
    special_tokens = config.added_tokens if tokenizer is None else tokenizer.special_ids
    plain = () if tokenizer is None else [t for t, i in tokenizer.special_ids.items() if i not in tokenizer.specials]
    return SpooledExamples(data, source, file, chat_tokens, special_tokens, plain, progress=progress)


def _no_texts() -> Iterator[str]:
    return iter(())


def training_texts(corpus: Corpus, part_of: PartOf, *, all_splits: bool) -> Iterator[str]:
    """What a vocabulary is learned from: the training split, or all of a corpus."""
    for (part, _), run in by_document(cut_into_parts(corpus.chunks(), part_of)):
        if part == "train" or all_splits:
            yield from between_words(chunk.text for _, chunk in run)


def texts_of_examples(examples: Iterable[Example], part_of: Callable[[int], str], *, all_splits: bool) -> Iterator[str]:
    """The same of records."""
    for number, example in enumerate(examples):
        if part_of(number) == "train" or all_splits:
            for segment in example.segments:
                if isinstance(segment.text, str) and not segment.special:
                    yield segment.text


def learn_vocabulary(config: TokenizerConfig, texts: Callable[[], Iterator[str]], *, progress: bool) -> Tokenizer:
    """A tokenizer that is trained on texts, which can be read as often as needed, with a bar that has no end."""
    # How often the texts are read is the tokenizer's matter, and most of the time may follow: the bar has no end.
    with byte_progress("learning the vocabulary", None, show=progress) as advance:

        def shown() -> Iterator[str]:
            for text in texts():
                yield text
                advance(len(text.encode("utf-8", "surrogatepass")))

        return config.build(shown)


def _write_sizes(
    folder: Path,
    n_documents: int,
    n_bytes: int,
    *,
    left_out: Sequence[str],
    notes: Sequence[str],
    lost_text: str | None,
) -> None:
    found = {"n_documents": n_documents, "n_bytes": n_bytes, "left_out": list(left_out), "notes": list(notes)}
    (folder / "corpus.json").write_text(json.dumps(found | {"lost_text": lost_text}), encoding="utf-8")


class _LostText:
    """What encoding and decoding lose of the text: the first example found in the beginning of each split."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._n_characters: Counter[str] = Counter()  # compared, by split
        self.example: str | None = None

    def compare(self, job: EncodeJob, encoded: Encoded) -> None:
        """Compare a job's texts with what their ids stand for."""
        if self._tokenizer.is_lossless or self.example or self._n_characters[job.part] >= _COMPARED_CHARACTERS:
            return
        self._n_characters[job.part] += job.n_characters
        begin = 0
        for text, size in zip(job.texts, encoded.sizes, strict=True):
            if isinstance(text, str) and self.example is None:
                self.example = lost_text(text, self._tokenizer.decode(encoded.ids[begin : begin + size]))
            begin += size


def _writers(stack: ExitStack, folder: Path, tokenizer: Tokenizer, data: DataConfig) -> dict[str, TokenWriter]:
    return {
        part: stack.enter_context(
            TokenWriter(folder / f"{part}.bin", vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.fingerprint)
        )
        for part in parts_of(data)
    }


def _start(stack: ExitStack, folder: Path, tokenizer: Tokenizer, data: DataConfig, n_bytes: int) -> Encoders:
    tokenizer.save(folder / "tokenizer.json")
    n_processes = data.n_processes or n_cores()
    # Starting a process costs as much as tokenizing a few megabytes.
    if n_bytes < _SMALL_CORPUS_BYTES or tokenizer.one_process:
        n_processes = 1
    return stack.enter_context(Encoders(tokenizer, n_processes))


def n_cores() -> int:
    """The cores that this process may use."""
    with suppress(AttributeError):  # not on every platform
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _jobs(parts: Iterable[tuple[str, TextChunk]], tokenizer: Tokenizer) -> Iterator[EncodeJob]:
    open_jobs: dict[str, EncodeJob] = {}
    begun: set[str] = set()
    for (part, _), run in by_document(parts):
        job = open_jobs.get(part)
        if job is None:
            job = open_jobs[part] = _empty_job(part)
        if part in begun and tokenizer.eot is not None:
            job.texts.append(tokenizer.eot)
        begun.add(part)
        job.n_documents += 1
        for text in tokenizer.chunks(chunk.text for _, chunk in run):
            job.texts.append(text)
            job.n_characters += len(text)
            job.n_bytes += len(text.encode("utf-8", "surrogatepass"))
            if job.n_characters >= JOB_CHARACTERS:
                yield job
                job = open_jobs[part] = _empty_job(part)
    yield from (job for job in open_jobs.values() if job.texts)


@dataclass(kw_only=True, slots=True)
class _ExampleJob(EncodeJob):
    examples: list[Example]


def _example_jobs(
    examples: Iterable[Example], part_of: Callable[[int], str], tokenizer: Tokenizer
) -> Iterator[_ExampleJob]:
    open_jobs: dict[str, _ExampleJob] = {}
    for number, example in enumerate(examples):
        part = part_of(number)
        job = open_jobs.get(part)
        if job is None:
            job = _ExampleJob(part=part, texts=[], n_documents=0, n_characters=0, n_bytes=0, examples=[])
            open_jobs[part] = job
        example = resolve(example, tokenizer)
        job.texts += [segment.text for segment in example.segments if segment.text is not None]
        job.examples.append(example)
        job.n_documents += 1
        job.n_characters += sum(len(segment.text) for segment in example.segments if isinstance(segment.text, str))
        job.n_bytes += sum(map(n_bytes, example.segments))
        if job.n_characters >= JOB_CHARACTERS:
            yield open_jobs.pop(part)
    yield from open_jobs.values()


def _add_examples(
    examples: list[Example], encoded: Encoded, beginning: tuple[int, ...], table: ExampleTableWriter
) -> np.ndarray:
    """Add the examples to `table` and return their tokens."""
    before = np.array(beginning, dtype=encoded.ids.dtype)
    sizes, parts, position = iter(encoded.sizes), [], 0
    for example in examples:
        length, spans = len(beginning), []
        for segment in example.segments:
            size = next(sizes)
            if not size and isinstance(segment.text, str) and (segment.scored or segment.text.strip()):
                raise UserError(
                    f"{example.where}: the tokenizer makes no token of {segment.text[:40]!r}; leave the record out"
                )
            if segment.scored:
                follows = spans and spans[-1][1] == length
                spans.append((spans.pop()[0] if follows else length, length + size))
            length += size
        table.add(length, spans, example.label)
        n = length - len(beginning)
        parts += [before, encoded.ids[position : position + n]]
        position += n
    return np.concatenate(parts)


def _empty_job(part: str) -> EncodeJob:
    return EncodeJob(part=part, texts=[], n_documents=0, n_characters=0, n_bytes=0)
