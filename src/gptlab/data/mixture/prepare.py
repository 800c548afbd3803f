"""What a run reads as token files: one corpus, or each source of a mixture with one tokenizer for all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptlab.data.cache import cache_lock, cache_root
from gptlab.data.config import DataConfig, RunDataConfig, Split
from gptlab.data.curation.corpus import open_source
from gptlab.data.examples.records import SpooledExamples
from gptlab.data.mixture.config import MixtureConfig, with_name
from gptlab.data.prepare import (
    PreparedData,
    inputs_of,
    learn_tokenizer,
    learn_vocabulary,
    prepare,
    texts_of_examples,
    training_texts,
)
from gptlab.data.sources.config import TableConfig
from gptlab.data.sources.source import Corpus, RecordSource, SpooledCorpus
from gptlab.data.split import measure, split_documents, split_examples
from gptlab.data.tokenizers.config import TokenizerConfig, TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer

_VERSION = 1


@dataclass(kw_only=True, slots=True)
class PreparedMixture:
    """The sources of a mixture, tokenized alike."""

    corpora: dict[str, PreparedData]  # by name, in the order of the names
    fingerprint: str  # sha256 over those of the sources
    inputs: dict[str, str]  # as `inputs_of_run` gives them

    @property
    def tokenizer(self) -> Tokenizer:
        return next(iter(self.corpora.values())).tokenizer

    @property
    def description(self) -> str:
        return "; ".join(f"{name}: {corpus.description}" for name, corpus in self.corpora.items())

    @property
    def notes(self) -> list[str]:
        return [f"{name}: {note}" for name, corpus in self.corpora.items() for note in corpus.notes]

    @property
    def lost_text(self) -> str | None:
        return next((corpus.lost_text for corpus in self.corpora.values() if corpus.lost_text), None)

    @property
    def has_examples(self) -> bool:
        """Whether the sources have records."""
        return any(corpus.examples for corpus in self.corpora.values())

    def n_tokens(self, name: str) -> int:
        """The tokens of a split of all sources together."""
        return sum(corpus.n_tokens(name) for corpus in self.corpora.values())


def prepare_run(
    data: RunDataConfig, tokenizer: TokenizerConfig, *, progress: bool = True, verify: bool | None = None
) -> PreparedData | PreparedMixture:
    """What `gptlab.data.prepare.prepare` does, for a mixture too.

    A source is prepared as it would be alone, so that runs on it alone find the same token files. A tokenizer that is
    learned learns from all sources, as much of each as there is, in turn.
    """
    if not isinstance(data, MixtureConfig):
        assert isinstance(data, DataConfig)
        return prepare(data, tokenizer, progress=progress, verify=verify)
    data.check()
    tokenizer.check()
    inputs = inputs_of_run(data, tokenizer)
    if tokenizer.trained:
        tokenizer = TokenizerFileConfig(path=str(_learned(data, tokenizer, progress=progress)))
    corpora = {
        name: with_name(name, prepare, corpus, tokenizer, progress=progress, verify=verify)
        for name, corpus in data.corpora.items()
    }
    fingerprint = _sha256({name: corpus.fingerprint for name, corpus in corpora.items()})
    return PreparedMixture(corpora=corpora, fingerprint=fingerprint, inputs=inputs)


def inputs_of_run(data: RunDataConfig, tokenizer: TokenizerConfig) -> dict[str, str]:
    """A SHA-256 of each thing that `prepare_run` reads, by the key that a user knows it by; no token is made."""
    if not isinstance(data, MixtureConfig):
        assert isinstance(data, DataConfig)
        return inputs_of(data, tokenizer)
    of_sources: dict[str, str] = {}
    of_tokenizer: dict[str, str] = {}
    for name, corpus in data.corpora.items():
        found = with_name(name, inputs_of, corpus, tokenizer)
        of_tokenizer["tokenizer"] = found.pop("tokenizer")
        of_sources |= {key.replace("data", f"data.sources.{name}", 1): value for key, value in found.items()}
    return {"data": _sha256(of_sources), **of_tokenizer, **of_sources}


def learn_run_tokenizer(data: RunDataConfig, tokenizer: TokenizerConfig, *, progress: bool = True) -> Tokenizer:
    """The tokenizer that `prepare_run` learns, of a mixture from all sources; UserError for one that is not learned."""
    if not isinstance(data, MixtureConfig):
        assert isinstance(data, DataConfig)
        return learn_tokenizer(data, tokenizer, progress=progress)
    data.check()
    tokenizer.check()
    if not tokenizer.trained:
        return learn_tokenizer(data.first, tokenizer, progress=progress)  # which says what to use instead
    return load_tokenizer(_learned(data, tokenizer, progress=progress))


def _learned(data: MixtureConfig, config: TokenizerConfig, *, progress: bool) -> Path:
    """The file of the tokenizer that is learned from the sources; made on the first call."""
    corpora = data.corpora
    built = {name: with_name(name, open_source, corpus, progress=progress) for name, corpus in corpora.items()}
    key = {
        "version": _VERSION,
        "tokenizer": config.identity(),
        "sources": {name: _split_key(corpus, built[name].fingerprint) for name, corpus in corpora.items()},
    }
    root = cache_root(data.cache_dir)
    folder = root / f"vocabulary-{_sha256(key)[:16]}"
    file = folder / "tokenizer.json"
    if file.is_file():
        return file
    with cache_lock(root, folder.name):
        if not file.is_file():
            partial_folder = root / f".{folder.name}.partial"
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir()
            try:
                texts = {
                    name: with_name(name, _texts, corpus, built[name], config, partial_folder / name, progress)
                    for name, corpus in corpora.items()
                }
                tokenizer = learn_vocabulary(config, partial(_in_turn, texts), progress=progress)
                for spool in partial_folder.iterdir():
                    spool.unlink()
                tokenizer.save(partial_folder / "tokenizer.json")
                os.rename(partial_folder, folder)
            finally:
                shutil.rmtree(partial_folder, ignore_errors=True)
    return file


def _split_key(corpus: DataConfig, content: str) -> list[Any]:
    parts: list[Any] = [content, Split(corpus.split).value, corpus.val_fraction, corpus.test_fraction]
    if isinstance(corpus, TableConfig):
        parts += [corpus.prompt, corpus.response, corpus.label_column, corpus.messages, corpus.chat]
        parts += [corpus.chat_template, corpus.class_names, corpus.drop_unknown_classes]
    return parts


def _texts(
    corpus: DataConfig, built: Corpus | RecordSource, config: TokenizerConfig, spool: Path, progress: bool
) -> Callable[[], Iterator[str]]:
    """What a vocabulary learns from a source, to be read as often as needed."""
    if isinstance(built, RecordSource):
        assert isinstance(corpus, TableConfig)
        examples = SpooledExamples(corpus, built, spool, config.chat_tokens, config.added_tokens, progress=progress)
        of_example = split_examples(corpus, examples.hashes)
        return partial(texts_of_examples, examples, of_example, all_splits=config.all_splits)
    if built.slow:
        built = SpooledCorpus(built, spool, progress=progress)
    part_of = split_documents(corpus, measure(built))
    return partial(training_texts, built, part_of, all_splits=config.all_splits)


def _in_turn(texts: dict[str, Callable[[], Iterator[str]]]) -> Iterator[str]:
    """The texts of all sources: next always one of the source of which the fewest characters were read."""
    n_characters = dict.fromkeys(texts, 0)
    running = {name: open_texts() for name, open_texts in texts.items()}
    while running:
        name = min(running, key=lambda name: n_characters[name])
        text = next(running[name], None)
        if text is None:
            del running[name]
            continue
        n_characters[name] += len(text)
        yield text


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
