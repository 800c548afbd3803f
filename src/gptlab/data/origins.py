"""Where the documents of a split are from: the file, or the record of one, by the name that the source gives it."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gptlab.data.config import DataConfig
from gptlab.data.curation.corpus import open_source
from gptlab.data.prepare import PreparedData, spool_examples
from gptlab.data.sources.config import ShardsConfig, TableConfig
from gptlab.data.sources.source import Corpus, RecordSource
from gptlab.data.split import by_document, cut_into_parts, measure, split_documents, split_examples
from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.units import bytes_text

MOST_BYTES = 128 * 2**20  # of a source that is read for the names


def origins(
    data: DataConfig, tokenizer: TokenizerConfig, prepared: PreparedData, part: str, numbers: Collection[int]
) -> tuple[dict[int, str], str | None]:
    """The names of some documents or records of a split by their numbers, and why they are not known; None: they are.

    Nothing that is prepared keeps them, so a local source of up to `MOST_BYTES` is read again, as it was to prepare it.
    """
    if isinstance(data, ShardsConfig):
        return {}, "shards keep no names of documents"
    source = open_source(data, progress=False)
    path = None if data.path is None else Path(data.path).expanduser()
    size_bytes = source.n_bytes if isinstance(source, Corpus) else path.stat().st_size if path and path.is_file() else 0
    if (isinstance(source, Corpus) and source.slow) or not 0 < size_bytes <= MOST_BYTES:
        return {}, f"files and records are looked for in a local source of up to {bytes_text(MOST_BYTES)}"
    if isinstance(source, Corpus):
        found, n = _numbered(_documents(data, source, part), numbers)
    else:
        assert isinstance(data, TableConfig)
        found, n = _numbered(_records(data, tokenizer, source, part), numbers)
    if n != prepared.existing_part(part).n_documents:
        return {}, "the source has other documents than were prepared"
    return found, None


def _numbered(names: Iterable[str], numbers: Collection[int]) -> tuple[dict[int, str], int]:
    found, n = {}, 0
    for n, name in enumerate(names, 1):
        if n - 1 in numbers:
            found[n - 1] = name
    return found, n


def _documents(data: DataConfig, corpus: Corpus, part: str) -> Iterator[str]:
    part_of = split_documents(data, measure(corpus))
    for (of, _), run in by_document(cut_into_parts(corpus.chunks(), part_of)):
        if of == part:
            yield next(iter(run))[1].name


def _records(data: TableConfig, config: TokenizerConfig, source: RecordSource, part: str) -> Iterator[str]:
    tokenizer = None if config.trained else config.build(lambda: iter(()))
    with TemporaryDirectory(prefix="gptlab-") as folder:
        examples = spool_examples(data, config, tokenizer, source, Path(folder) / "spool", progress=False)
        part_of = split_examples(data, examples.hashes)
        for number, example in enumerate(examples):
            if part_of(number) == part:
                yield example.where
