"""BERT's WordPiece (Devlin et al. 2019, arXiv:1810.04805), trained by the `tokenizers` library."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gptlab.data.tokenizers.config import BERT_SPECIAL_TOKENS, WordPieceConfig
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import TRAINING_CHARACTERS, first_characters
from gptlab.data.tokenizers.training import learn

_, UNK, CLS, SEP, _ = BERT_SPECIAL_TOKENS
_WITHIN = "##"  # before a piece that does not begin a word
_MAX_CHARACTERS = 1000


def build_wordpiece(config: WordPieceConfig, texts: Callable[[], Iterator[str]]) -> FileTokenizer:
    """A WordPiece tokenizer trained on `texts`."""
    content = train_wordpiece(
        lambda: first_characters(texts(), TRAINING_CHARACTERS),
        config.vocab_size,
        lowercase=config.lowercase,
        special_tokens=config.added_tokens,
    )
    return FileTokenizer(content, SEP)


def train_wordpiece(
    texts: Callable[[], Iterator[str]], vocab_size: int, *, lowercase: bool, special_tokens: Sequence[str] = ()
) -> str:
    """A tokenizer.json with a vocabulary of at most `vocab_size`: BERT's five special tokens, `special_tokens`,
    characters, and pieces by rank.

    Reads the texts twice. The most frequent characters are kept, at most 1,000, and few enough that each has an entry
    for the beginning of a word and one for within; a word with another character is unknown. Equal texts give equal
    files.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    first = [*BERT_SPECIAL_TOKENS, *special_tokens]

    def around(model: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    split = around(models.WordPiece(unk_token=UNK))
    characters, within = _characters(split, texts(), min(_MAX_CHARACTERS, (vocab_size - len(first)) // 2))
    learned = learn(
        "wordpiece",
        texts(),
        vocab_size=vocab_size,
        lowercase=lowercase,
        # The library numbers the characters within words by the order of a hash table, which differs between runs, and
        # breaks ties between merges by these numbers. Characters given as special tokens keep theirs.
        special_tokens=[*first, *(_WITHIN + character for character in within)],
        alphabet=characters,
        prefix=_WITHIN,
    )
    vocabulary = {token: rank for rank, token in enumerate(learned)}
    result = around(models.WordPiece(vocabulary, unk_token=UNK, continuing_subword_prefix=_WITHIN))
    result.decoder = decoders.WordPiece(prefix=_WITHIN)
    result.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, vocabulary[token]) for token in (CLS, SEP)],
    )
    result.add_special_tokens(first)
    return json.dumps(json.loads(result.to_str()), sort_keys=True)


def _characters(tokenizer: Any, texts: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters of the texts' words, in the order of code points, and those found within words."""
    counts = np.zeros(0x110000, dtype=np.int64)
    followers = np.zeros(0x110000, dtype=np.int64)  # after a character that belongs to a word
    in_words = np.zeros(0x110000, dtype=bool)
    known = np.zeros(0x110000, dtype=bool)
    for text in texts:
        codes = np.frombuffer(tokenizer.normalizer.normalize_str(text).encode("utf-32-le"), dtype="<u4")
        for code in np.unique(codes[~known[codes]]).tolist():
            known[code] = True
            # Whether a character belongs to a word is asked of the library: such a one does not split it.
            in_words[code] = len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{chr(code)}a")) == 1
        counts += np.bincount(codes, minlength=len(counts))
        followers += np.bincount(codes[1:][in_words[codes[:-1]]], minlength=len(counts))
    for code in np.flatnonzero(counts).tolist():
        if not tokenizer.pre_tokenizer.pre_tokenize_str(chr(code)):
            counts[code] = 0  # space
    found = np.flatnonzero(counts)
    kept = np.sort(found[np.argsort(-counts[found], kind="stable")][:limit])
    within = kept[in_words[kept] & (followers[kept] > 0)]
    return [chr(code) for code in kept.tolist()], [chr(code) for code in within.tolist()]
