"""Vocabularies learned by the `tokenizers` library, of much text in a process of its own.

The library does not let Python answer a signal while it learns. A process that waits for another one can, and ends it.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, BinaryIO

from gptlab.data.child_process import end_child, own_replies, pipes_of, start_child
from gptlab.data.tokenizers.cutting import gpt2_cut, recut
from gptlab.data.tokenizers.split_pattern import split_pattern
from gptlab.data.tokenizers.threads import forbid_threads, threads_of_child

SMALL_CHARACTERS = 1 << 19  # which take less time to learn from than a process takes to start
# A word, whatever is in it, with the spaces before it and the line ends after it, much as SentencePiece splits: the
# library finds the pieces of unigram models among the parts that several words share, which few words behind GPT-2's
# split do. Longer words are cut, since the time that they take grows with the square of their length.
WORDS_WITH_SPACE = r" *[^ \n]{1,32}\n*| +|\n+"
GPT2_SPLIT = split_pattern("gpt2").expression
_RUN_CHARACTERS = 1000


def between_words(texts: Iterable[str]) -> Iterator[str]:
    """One document's text, cut only where GPT-2's split cuts too."""
    return recut(texts, gpt2_cut)


def learn_bpe(texts: Iterable[str], *, vocab_size: int, expression: str = GPT2_SPLIT) -> list[str]:
    """A byte-pair vocabulary of GPT-2's byte alphabet by rank, of the pieces that `expression` matches."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = byte_level_split(expression)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return _by_rank(trained)


def learn_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool,
    special_tokens: list[str],
    alphabet: list[str],
    prefix: str,
) -> list[str]:
    """A WordPiece vocabulary by rank, special tokens first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.WordPiece())
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return _by_rank(trained)


def learn_unigram(texts: Iterable[str], *, vocab_size: int) -> list[tuple[str, float]]:
    """A unigram vocabulary of GPT-2's byte alphabet with log-probabilities, by frequency."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = byte_level_split(WORDS_WITH_SPACE)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    found = json.loads(trained.to_str())["model"]["vocab"]
    # The library goes through hash tables, whose order differs between runs: in it probabilities are added up, so that
    # their last digits differ, and bytes that no text has get one less than the rarest piece each.
    learned = [(token, round(score, 6)) for token, score in found]
    rarest = min((score for token, score in learned if len(token) > 1), default=0.0)
    learned = [(token, max(score, rarest)) for token, score in learned]
    return sorted(learned, key=lambda one: (-one[1], one[0]))


def byte_level_split(expression: str) -> Any:
    """The `tokenizers` library's split of a text into the pieces that `expression` matches, spelled in GPT-2's byte
    alphabet."""
    from tokenizers import Regex, pre_tokenizers

    if expression == GPT2_SPLIT:  # which the library has built in, and which reads faster
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LEARN: dict[str, Callable[..., list[Any]]] = {
    "bpe": learn_bpe,
    "wordpiece": learn_wordpiece,
    "unigram": learn_unigram,
}


def learn(kind: str, texts: Iterable[str], **settings: Any) -> list[Any]:
    """The vocabulary that the function of that kind finds; an exception in this thread ends the search.

    Runs of more than 1,000 letters, or other characters of a kind, are learned from in parts, since the time a run
    takes grows with the square of its length: of the pairs in them one in a thousand is not counted.
    """
    pieces = _short_runs(texts)
    first, n = [], 0
    for piece in pieces:
        first.append(piece)
        n += len(piece)
        if n > SMALL_CHARACTERS:
            found = _learn_elsewhere(kind, chain(first, pieces), settings)
            break
    else:
        found = _LEARN[kind](first, **settings)
        forbid_threads()  # a later fork (a loader's workers) is warned about those that training used
    return found


def _by_rank(trained: Any) -> list[str]:
    return [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]


def _short_runs(texts: Iterable[str]) -> Iterator[str]:
    import regex  # tiktoken's

    run = regex.compile(
        rf"\p{{L}}{{{_RUN_CHARACTERS},}}|\p{{N}}{{{_RUN_CHARACTERS},}}|[^\s\p{{L}}\p{{N}}]"
        rf"{{{_RUN_CHARACTERS},}}|\s{{{_RUN_CHARACTERS},}}"
    )
    for text in texts:
        done = 0
        for found in run.finditer(text):
            for at in range(found.start() + _RUN_CHARACTERS, found.end(), _RUN_CHARACTERS):
                yield text[done:at]
                done = at
        if done < len(text):
            yield text[done:]


def _learn_elsewhere(kind: str, texts: Iterable[str], settings: dict[str, Any]) -> list[str]:
    child = start_child(__name__, threads_of_child())
    requests, replies = pipes_of(child)
    try:
        with suppress(BrokenPipeError):  # its exit code says more
            _send(requests, json.dumps([kind, settings]).encode())
            for text in texts:
                if text:
                    _send(requests, text.encode("utf-8", "surrogatepass"))
            _send(requests, b"")
            requests.flush()
        reply = replies.read()
        if child.wait():
            raise RuntimeError(f"learning the vocabulary failed (exit code {child.returncode}); see its output above")
        return json.loads(reply)
    finally:
        end_child(child)


def _send(pipe: Any, data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little") + data)


def _received(pipe: BinaryIO) -> Iterator[bytes]:
    while size := int.from_bytes(pipe.read(8), "little"):
        data = pipe.read(size)
        if len(data) < size:
            return
        yield data


def _end_with_parent(pipe: BinaryIO) -> None:
    pipe.read(1)  # nothing comes: the other end is closed when the parent has ended
    os._exit(1)


def main() -> None:
    """Learn a vocabulary from standard input and write it to standard output, as a child process."""
    replies = own_replies()
    messages = _received(sys.stdin.buffer)
    kind, settings = json.loads(next(messages))

    def texts() -> Iterator[str]:
        yield from (data.decode("utf-8", "surrogatepass") for data in messages)
        threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()

    replies.write(json.dumps(_LEARN[kind](texts(), **settings)).encode())
    replies.close()
    os._exit(0)
