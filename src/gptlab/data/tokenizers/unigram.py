"""Unigram language-model tokenization (Kudo 2018, arXiv:1804.10959), trained by the `tokenizers` library.

A word keeps the space before it and what follows it, as in SentencePiece. The pieces are made of bytes, so that no text
is unknown or lost.
"""

import json
from collections.abc import Callable, Iterator

from gptlab.data.tokenizers.config import UnigramConfig
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import END_OF_TEXT, TRAINING_CHARACTERS, first_characters
from gptlab.data.tokenizers.training import WORDS_WITH_SPACE, byte_level_split, learn


def build_unigram(config: UnigramConfig, texts: Callable[[], Iterator[str]]) -> FileTokenizer:
    """A unigram tokenizer trained on the first 200M characters of `texts`; special tokens follow the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    special = [END_OF_TEXT, *config.added_tokens]
    vocabulary = learn(
        "unigram",
        first_characters(texts(), TRAINING_CHARACTERS),
        vocab_size=config.vocab_size - len(special),
    )
    tokenizer = Tokenizer(models.Unigram([(token, score) for token, score in vocabulary]))
    tokenizer.pre_tokenizer = byte_level_split(WORDS_WITH_SPACE)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return FileTokenizer(json.dumps(json.loads(tokenizer.to_str()), sort_keys=True), END_OF_TEXT)
