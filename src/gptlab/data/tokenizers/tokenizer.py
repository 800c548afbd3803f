"""Text to token ids and back."""

import base64
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.cache import replacing
from gptlab.data.tokenizers.config import TokenizerFileConfig, WordPieceConfig, sentinel
from gptlab.data.tokenizers.wordpiece import SEP, train_wordpiece
from gptlab.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_ROLES = {  # what BERT, T5 and RoBERTa call these words
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
}
# GPT-2's split (Radford et al. 2019). Looking ahead is kept out of the group: the engine behind tiktoken then runs the
# group as one automaton, 1.7 times as fast as tiktoken's own spelling, which gives the same pieces.
_GPT2_SPLIT = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"
_SPACES = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_RUN_CHARACTERS = 500_000
_LONG_RUN = re.compile(f"(?<!{_SPACES}){_SPACES}{{{_LONG_RUN_CHARACTERS},}}")
_CUT_ATTEMPTS = 32
_TRAINING_CHARACTERS = 200_000_000
_PROBED_WORDS = 2000


class Tokenizer(ABC):
    """Text to ids and back.

    `fingerprint` is a sha256 over the kind and the vocabulary: equal fingerprints give equal ids. `eot` is the id of
    the end-of-text word, None where the vocabulary has none. `beginning` is the ids that models of this tokenizer read
    before a text; `encode` leaves them out.

    `mask`, `pad`, `cls` and `sep` are the ids of these words, None where the vocabulary has none, `sentinels` those of
    <extra_id_0>, <extra_id_1> and so on. `specials` holds every id that stands for no text. `special_tokens` are those
    that were added to a vocabulary made here.
    """

    type: str
    vocab_size: int
    eot: int | None
    fingerprint: str
    beginning: tuple[int, ...] = ()
    special_tokens: tuple[str, ...] = ()
    mask: int | None
    pad: int | None
    cls: int | None
    sep: int | None
    sentinels: tuple[int, ...]
    specials: frozenset[int]

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, 1-D, nothing added; what looks like a special word is ordinary text."""

    @abstractmethod
    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def cut(self, text: str) -> int:
        """The last place in `text` where encoding the two sides apart gives the same ids; 0 where there is none."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What `save` writes beside kind and fingerprint."""

    def save(self, path: str | Path) -> None:
        """Write one self-contained JSON file (GPT-2's vocabulary by its name), atomically."""
        content = {"type": self.type, "fingerprint": self.fingerprint, **self._state()}
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def without_beginning(self) -> "Tokenizer":
        """The same words and ids for models that never read a beginning."""
        return self

    def agrees_with(self, other: "Tokenizer") -> bool:
        """Whether each of this tokenizer's ids stands for the same text in `other`, and text gives the same ids."""
        if self.fingerprint == other.fingerprint:
            return True
        if self.vocab_size > other.vocab_size:
            return False
        words = [self.decode([number]) for number in range(self.vocab_size)]
        if any(word != other.decode([number]) for number, word in enumerate(words)):
            return False
        text = "".join(words[:: 1 + len(words) // _PROBED_WORDS])
        try:
            return self.encode(text).tolist() == other.encode(text).tolist()
        except ValueError:  # for one of them it has unknown characters
            return False

    def portable(self) -> dict[str, Any]:
        """JSON values from which `from_portable` makes a tokenizer that gives the same ids in another process."""
        return {"type": self.type, **self._state()}

    def chunks(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of one document, cut anew so that encoding chunk by chunk gives the ids of the whole."""
        return _recut(pieces, self.cut)

    def _add_words(self, special_tokens: Iterable[str], words: Collection[str] | Collection[bytes]) -> None:
        """Put special words after the vocabulary; ValueError where one is among its `words` already."""
        self.special_tokens = tuple(special_tokens)
        for word in self.special_tokens:
            if word in words or word.encode() in words or word == END_OF_TEXT:
                raise UserError(
                    f"tokenizer.special_tokens holds {word!r}, which is a word of the vocabulary already; choose "
                    "another, such as <mask>"
                )
        ids = {word: self.vocab_size + n for n, word in enumerate(self.special_tokens)}
        self.vocab_size += len(ids)
        if ids:  # none leave the fingerprint as it is
            content = json.dumps([self.fingerprint, *self.special_tokens])
            self.fingerprint = _fingerprint(self.type, content.encode())
        self._give_roles(ids, ids.values())

    def _give_roles(self, ids: Mapping[str, int], specials: Iterable[int]) -> None:
        """Find the words with a role by their usual names; the ids of `specials` are known to stand for no text."""
        for role, names in _ROLES.items():
            setattr(self, role, next((ids[name] for name in names if name in ids), None))
        self.sentinels = tuple(ids[word] for word in takewhile(ids.__contains__, map(sentinel, count())))
        named = {self.eot, self.mask, self.pad, self.cls, self.sep} - {None}
        self.specials = frozenset({*named, *self.sentinels, *self.beginning, *specials})

    def _checked(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids)).ravel()
        if not array.size:
            return array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise UserError(f"token ids must be integers, not {array.dtype}")
        outside = (array < 0) | (array >= self.vocab_size)
        if outside.any():
            wrong = int(array[outside][0])
            raise UserError(f"token id {wrong} is outside the vocabulary of {self.vocab_size:,} words")
        return array.astype(np.int64)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255 and one end-of-text word."""

    type = "byte"
    eot = 256

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        self.vocab_size = 257
        self.fingerprint = _fingerprint(self.type, b"")
        self._add_words(special_tokens, [bytes([byte]) for byte in range(256)])

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_scalars(text).encode(), dtype=np.uint8)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        array = self._checked(ids)
        words = (END_OF_TEXT, *self.special_tokens)
        first, *others = np.split(array, np.flatnonzero(array >= self.eot))
        # Every run but the first begins with the word it was split at.
        parts = [_read(first), *(words[run[0] - self.eot] + _read(run[1:]) for run in others)]
        return "".join(parts)

    def cut(self, text: str) -> int:
        return len(text)

    def _state(self) -> dict[str, Any]:
        return _special(self)


class CharTokenizer(Tokenizer):
    """One id for each distinct character, in the order of their code points; no end-of-text word."""

    type = "char"
    eot = None

    def __init__(self, characters: str, special_tokens: Iterable[str] = ()) -> None:
        if not characters or list(characters) != sorted(set(characters)):
            raise UserError("a character vocabulary is at least one character, each once, in the order of code points")
        self.characters = characters
        self.vocab_size = len(characters)
        self._codes = _code_points(characters)
        self._ids = np.full(int(self._codes[-1]) + 1, -1, dtype=np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size, dtype=np.int32)
        self.fingerprint = _fingerprint(self.type, self._codes.astype("<u4").tobytes())
        self._add_words(special_tokens, list(characters))
        self._words = [*characters, *self.special_tokens]

    @classmethod
    def build(cls, texts: Iterable[str], special_tokens: Iterable[str] = ()) -> "CharTokenizer":
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            seen[_code_points(_scalars(text))] = True
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())), special_tokens)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(_scalars(text))
        known = codes < len(self._ids)
        ids = self._ids[np.where(known, codes, 0)]
        unknown = ~known | (ids < 0)
        if unknown.any():
            code = int(codes[unknown][0])
            raise UserError(
                f"character {chr(code)!a} (U+{code:04X}) is not among the {len(self.characters)} characters of the "
                "vocabulary; leave it out, or train with tokenizer=byte, which knows all text"
            )
        return ids

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return "".join([self._words[number] for number in self._checked(ids).tolist()])

    def cut(self, text: str) -> int:
        return len(text)

    def _state(self) -> dict[str, Any]:
        return {"characters": self.characters, **_special(self)}


class _TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding run by tiktoken behind GPT-2's split: `words` by rank, the end-of-text word, special words."""

    eot: int

    def __init__(self, words: list[bytes], special_tokens: Iterable[str], fingerprint: str) -> None:
        import tiktoken

        self._words = words
        self.eot = len(words)
        self.vocab_size = len(words) + 1
        self.fingerprint = fingerprint
        self._add_words(special_tokens, set(words))
        self._encoding = tiktoken.Encoding(
            self.type,
            pat_str=_GPT2_SPLIT,
            mergeable_ranks={word: rank for rank, word in enumerate(words)},
            special_tokens={word: self.eot + n for n, word in enumerate((END_OF_TEXT, *self.special_tokens))},
        )

    def encode(self, text: str) -> np.ndarray:
        text = _scalars(text)
        if len(text) < _LONG_RUN_CHARACTERS:
            return self._encode(text)
        # tiktoken panics where a million spaces go before a word: all but the last of them are a piece of their own.
        parts = []
        start = 0
        for run in _LONG_RUN.finditer(text):
            if run.end() < len(text):
                parts += [text[start : run.start()], text[run.start() : run.end() - 1]]
                start = run.end() - 1
        return np.concatenate([self._encode(part) for part in (*parts, text[start:])])

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._encoding.decode(self._checked(ids).tolist(), errors="replace")

    def cut(self, text: str) -> int:
        return _gpt2_cut(text)


class GPT2Tokenizer(_TiktokenTokenizer):
    """GPT-2's byte-pair encoding, 50,257 words (Radford et al. 2019)."""

    type = "gpt2"

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        import tiktoken

        try:
            encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests, ssl, proxies and the file system each have their own
            raise UserError(
                f"tokenizer=gpt2: GPT-2's vocabulary is neither cached nor to be had ({type(error).__name__}); set "
                "TIKTOKEN_CACHE_DIR to a folder that holds it, or use tokenizer=bpe or tokenizer=byte, which need no "
                "download"
            ) from error
        words = [encoding.decode_single_token_bytes(rank) for rank in range(encoding.eot_token)]
        super().__init__(words, special_tokens, _fingerprint(self.type, b"".join(words)))

    def portable(self) -> dict[str, Any]:
        # Ranks are loaded five times faster than GPT-2's own files.
        return {"type": BPETokenizer.type, "words": _spelled(self._words), **_special(self)}

    def _state(self) -> dict[str, Any]:
        return {"name": "gpt2", **_special(self)}


class BPETokenizer(_TiktokenTokenizer):
    """A byte-level byte-pair encoding of one's own: `words` by rank, the end-of-text word, special words."""

    type = "bpe"

    def __init__(self, words: list[bytes], special_tokens: Iterable[str] = ()) -> None:
        if len(set(words)) != len(words) or not {bytes([byte]) for byte in range(256)} <= set(words):
            raise UserError("the words of a byte-pair encoding are distinct and include all 256 bytes")
        spelling = b"".join(len(word).to_bytes(4, "little") + word for word in words)
        super().__init__(words, special_tokens, _fingerprint(self.type, spelling))

    @classmethod
    def train(cls, vocab_size: int, texts: Iterable[str], special_tokens: Collection[str] = ()) -> "BPETokenizer":
        """Learn the merges of a text; `vocab_size` counts the end-of-text word and the special words.

        Reads the first 200M characters. A text too small for that many merges gives fewer words.
        """
        others = 1 + len(special_tokens)
        if vocab_size < 256 + others:
            what = f"{others} special words" if special_tokens else "the end-of-text word"
            raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {what} need {256 + others}")
        from tokenizers import Tokenizer as Trained
        from tokenizers import models, pre_tokenizers, trainers

        trained = Trained(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - others,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        trained.train_from_iterator(_first_characters(texts, _TRAINING_CHARACTERS), trainer)
        # A later fork (a loader's workers) would otherwise be warned about the threads that training used.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        byte_of = byte_alphabet()
        by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
        return cls([bytes(byte_of[character] for character in word) for word, _ in by_id], special_tokens)

    def _state(self) -> dict[str, Any]:
        return {"words": _spelled(self._words), **_special(self)}


class FileTokenizer(Tokenizer):
    """Any tokenizer.json of the `tokenizers` library, given as its text."""

    type = "file"

    def __init__(self, content: str, eot: str | None = None) -> None:
        # Documents are encoded in parallel already; threads of its own would only meet later forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer as Loaded

        self._loaded = Loaded.from_str(content)
        self._loaded.no_truncation()
        self._loaded.no_padding()
        self._loaded.encode_special_tokens = True
        vocabulary = self._loaded.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError("its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        if eot is not None and eot not in vocabulary:
            raise UserError(f"tokenizer.eot={eot} is not a word of its vocabulary")
        self._eot_word = eot or next((name for name in _END_OF_TEXT_NAMES if name in vocabulary), None)
        self.eot = None if self._eot_word is None else vocabulary[self._eot_word]
        parts = json.loads(self._loaded.to_str())
        # transformers, too, goes by this part of the file alone: add_bos_token beside it changes nothing.
        self.beginning = tuple(_beginning(parts["post_processor"]))
        marked = {word["id"] for word in parts["added_tokens"] if word["special"]}
        self._give_roles(vocabulary, marked | _unknown(parts["model"], vocabulary))
        self.fingerprint = _fingerprint(self.type, f"{self.eot}\n{self._loaded.to_str()}".encode())

    @classmethod
    def read(cls, path: Path, eot: str | None = None) -> "FileTokenizer":
        """The tokenizer of a file; ValueError where it holds none."""
        try:
            return cls(path.read_text(encoding="utf-8"), eot)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library ({error})") from error

    def without_beginning(self) -> "FileTokenizer":
        if not self.beginning:
            return self
        content = json.loads(self._loaded.to_str()) | {"post_processor": None}
        return FileTokenizer(json.dumps(content), self._eot_word)

    def encode(self, text: str) -> np.ndarray:
        encoded = self._loaded.encode(_scalars(text), add_special_tokens=False)
        return np.array(encoded.ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._loaded.decode(self._checked(ids).tolist(), skip_special_tokens=False)

    def cut(self, text: str) -> int:
        return 0  # nothing is known of how it splits

    def _state(self) -> dict[str, Any]:
        return {"eot": self._eot_word, "tokenizer": json.loads(self._loaded.to_str())}


def build_wordpiece(config: WordPieceConfig, texts: Callable[[], Iterator[str]]) -> "FileTokenizer":
    """A WordPiece tokenizer trained on `texts`."""
    content = train_wordpiece(
        lambda: _first_characters(texts(), _TRAINING_CHARACTERS),
        config.vocab_size,
        lowercase=config.lowercase,
        special_tokens=config.added_tokens,
    )
    return FileTokenizer(content, SEP)


def read_tokenizer_file(config: TokenizerFileConfig) -> str:
    """The text of the tokenizer.json that a config names."""
    if config.path is None:
        raise UserError("tokenizer.path is not set; give the tokenizer.json that tokenizer=file shall read")
    path = Path(config.path).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"tokenizer.path={config.path} does not exist; give a tokenizer.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer.path={config.path} cannot be read as text ({error}); give a tokenizer.json"
        ) from None


def open_tokenizer_file(config: TokenizerFileConfig) -> Tokenizer:
    text = read_tokenizer_file(config)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"tokenizer.path={config.path} is not JSON ({error}); give a tokenizer.json") from None
    if isinstance(content, dict) and "fingerprint" in content:
        if config.eot is not None:
            raise UserError(
                f"tokenizer.path={config.path} is of a run, whose end-of-text word is known, and takes no "
                f"tokenizer.eot={config.eot}; leave it out"
            )
        tokenizer = _restore(content, f"tokenizer.path={config.path}", "give the tokenizer.json of a run as it was")
    else:
        try:
            tokenizer = FileTokenizer(text, config.eot)
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"tokenizer.path={config.path} is neither a tokenizer.json of the tokenizers library nor of a run "
                f"({error})"
                if "tokenizer.eot" not in str(error)
                else f"tokenizer.path={config.path}: {error}"
            ) from None
    n_sentinel_tokens = len(tokenizer.sentinels)
    if n_sentinel_tokens < config.n_sentinel_tokens:
        raise UserError(
            f"tokenizer.n_sentinel_tokens={config.n_sentinel_tokens} and tokenizer.path={config.path} has {n_sentinel_tokens or 'none'} of "
            f"these words, {sentinel(0)} and so on; set tokenizer.n_sentinel_tokens={n_sentinel_tokens}, or give a file that has more"
        )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote; a missing or altered file is a ValueError."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"tokenizer {path} does not exist; run again to prepare it") from None
    except (ValueError, OSError) as error:
        raise UserError(f"tokenizer {path} cannot be read ({error}); delete it and run again") from None
    return _restore(content, f"tokenizer {path}", "delete it and run again")


def _restore(content: dict[str, Any], name: str, advice: str) -> Tokenizer:
    """The tokenizer of the JSON values that `save` wrote; errors call it `name`."""
    try:
        tokenizer = from_portable(content)
        same = tokenizer.fingerprint == content["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is not one of gptlab ({error!r}); {advice}") from None
    if not same:
        raise UserError(f"{name} was altered (its fingerprint does not match); {advice}")
    return tokenizer


def from_portable(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer of `Tokenizer.portable`."""
    special_tokens = content.get("special_tokens", ())
    match content["type"]:
        case "byte":
            return ByteTokenizer(special_tokens)
        case "gpt2":
            return GPT2Tokenizer(special_tokens)
        case "char":
            return CharTokenizer(content["characters"], special_tokens)
        case "bpe":
            return BPETokenizer([base64.b64decode(word) for word in content["words"]], special_tokens)
        case "file":
            return FileTokenizer(json.dumps(content["tokenizer"]), content["eot"])
        case kind:
            raise KeyError(f"type {kind}")


def between_words(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of one document, cut anew where GPT-2's split cuts too: what a bpe learns from."""
    return _recut(pieces, _gpt2_cut)


def _recut(pieces: Iterable[str], cut: Callable[[str], int]) -> Iterator[str]:
    held: list[str] = []
    for piece in pieces:
        at = cut(piece)
        if at:
            held.append(piece[:at])
            yield "".join(held)
            held = [piece[at:]] if at < len(piece) else []
        elif piece:
            held.append(piece)
    if held:
        yield "".join(held)


def _gpt2_cut(text: str) -> int:
    # No piece of GPT-2's split goes on from a non-space to a space, and none looks behind itself. Python's spaces
    # include all of the split's, which makes `end` follow a non-space.
    end = len(text)
    for _ in range(_CUT_ATTEMPTS):
        at = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        end = len(text[: at + 1].rstrip())
        if not end or text[end] in " \n\t\r":
            return end
    return 0


def _beginning(processor: dict[str, Any] | None) -> list[int]:
    """What a post-processor of the tokenizers library puts before a text."""
    match processor:
        case {"type": "TemplateProcessing", "single": template, "special_tokens": words}:
            first = takewhile(lambda piece: "SpecialToken" in piece, template)
            return [number for piece in first for number in words[piece["SpecialToken"]["id"]]["ids"]]
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, number]}:
            return [number]
        case {"type": "Sequence", "processors": processors}:  # the library carries out one that adds words, the first
            return next(filter(None, map(_beginning, processors)), [])
    return []


def _unknown(model: dict[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """The id of the word for the unknown, of a model of the tokenizers library; empty where it has none."""
    number = model.get("unk_id", vocabulary.get(model.get("unk_token") or ""))
    return set() if number is None else {number}


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"special_tokens": list(tokenizer.special_tokens)} if tokenizer.special_tokens else {}


def _read(data: np.ndarray) -> str:
    return data.astype(np.uint8).tobytes().decode("utf-8", "replace")


def _spelled(words: list[bytes]) -> list[str]:
    return [base64.b64encode(word).decode() for word in words]


def _fingerprint(name: str, vocabulary: bytes) -> str:
    return hashlib.sha256(name.encode() + b"\0" + vocabulary).hexdigest()


def _scalars(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield _scalars(text[:limit])
        limit -= len(text)
        if limit <= 0:
            return


def byte_alphabet() -> dict[str, int]:
    """The byte of each character in GPT-2's spelling of bytes: printable ones stand for themselves, the others follow
    from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
