"""Config schema: tokenizers."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds, shown
from gptlab.registry import register

if TYPE_CHECKING:
    from gptlab.data.tokenizers.tokenizer import Tokenizer

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the first of a WordPiece vocabulary, in order


def sentinel(n: int) -> str:
    """How T5 spells its n-th sentinel token, which stands for a masked span."""
    return f"<extra_id_{n}>"


def _check_pattern(pattern: str) -> None:
    from gptlab.data.tokenizers.split_pattern import split_pattern

    split_pattern(pattern)


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """How text becomes token ids; each type registers a subclass with `build` and `restore`."""

    trained: ClassVar[bool] = False  # whether the vocabulary is learned from the corpus
    all_splits: ClassVar[bool] = False  # whether it is learned from every split, not the training split alone

    type: str = ""
    special_tokens: list[str] = field(default_factory=list)  # added to the vocabulary, as <mask> <pad> <cls> <sep>
    n_sentinel_tokens: int = bounded(0, ge=0)  # <extra_id_0>, <extra_id_1>, ... after these

    def build(self, texts: Callable[[], Iterator[str]]) -> "Tokenizer":
        """The tokenizer; `texts` yields what a trained one learns from."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "Tokenizer":
        """The tokenizer whose `state()` this is; a config whose tokenizers have another `type` needs none."""
        raise NotImplementedError(f"{cls.__name__} has no restore method")

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_bounds(self, "tokenizer.")
        for token in self.added_tokens:
            if not token:
                raise UserError("tokenizer.special_tokens holds an empty token; leave it out")
            if self.added_tokens.count(token) > 1:
                raise UserError(f"tokenizer.special_tokens holds {token!r} twice; name each token once")

    @property
    def added_tokens(self) -> list[str]:
        """The special tokens that are added to the vocabulary, in the order of their ids."""
        return [*self.special_tokens, *map(sentinel, range(self.n_sentinel_tokens))]

    @property
    def known_vocab_size(self) -> int | None:
        """The size of the vocabulary where it is known before any text is read."""
        return None

    @property
    def chat_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token` of chat templates, of a tokenizer that is still to be trained."""
        return {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the ids of a given corpus; files count by their content."""
        return asdict(self)


@register("tokenizer", "byte")
class ByteConfig(TokenizerConfig):
    """UTF-8 bytes and one end-of-text token."""

    def build(self, texts):
        from gptlab.data.tokenizers.byte import ByteTokenizer

        return ByteTokenizer(self.added_tokens)

    @classmethod
    def restore(cls, state):
        from gptlab.data.tokenizers.byte import ByteTokenizer

        return ByteTokenizer(state.get("special_tokens", ()))

    @property
    def known_vocab_size(self) -> int | None:
        return 257 + len(self.added_tokens)


@register("tokenizer", "char")
class CharConfig(TokenizerConfig):
    """The distinct characters of the corpus."""

    trained: ClassVar[bool] = True
    all_splits: ClassVar[bool] = True  # every split must be spelled with the same characters

    def build(self, texts):
        from gptlab.data.tokenizers.char import CharTokenizer

        return CharTokenizer.build(texts(), self.added_tokens)

    @classmethod
    def restore(cls, state):
        from gptlab.data.tokenizers.char import CharTokenizer

        return CharTokenizer(state["characters"], state.get("special_tokens", ()))


@register("tokenizer", "gpt2")
class GPT2Config(TokenizerConfig):
    """GPT-2's byte-pair encoding through tiktoken."""

    def build(self, texts):
        from gptlab.data.tokenizers.gpt2 import GPT2Tokenizer

        return GPT2Tokenizer(self.added_tokens)

    @classmethod
    def restore(cls, state):
        from gptlab.data.tokenizers.gpt2 import GPT2Tokenizer

        return GPT2Tokenizer(state.get("special_tokens", ()))

    @property
    def known_vocab_size(self) -> int | None:
        return 50_257 + len(self.added_tokens)


@register("tokenizer", "bpe")
class BPEConfig(TokenizerConfig):
    """A byte-level byte-pair encoding trained on the training split."""

    trained: ClassVar[bool] = True
    vocab_size: int = 4096
    pattern: str = "gpt2"  # the split before merging: gpt2, gpt4, or a regular expression

    def build(self, texts):
        from gptlab.data.tokenizers.bpe import BPETokenizer

        return BPETokenizer.train(self.vocab_size, texts(), self.added_tokens, self.pattern)

    @classmethod
    def restore(cls, state):
        from gptlab.data.tokenizers.bpe import BPETokenizer, decode_bytes

        vocabulary = decode_bytes(state["vocabulary"])
        return BPETokenizer(vocabulary, state.get("special_tokens", ()), state.get("pattern", "gpt2"))

    def identity(self):
        identity = super().identity()
        if self.pattern == "gpt2":  # token files from before there was a choice stay valid
            del identity["pattern"]
        return identity

    def check(self) -> None:
        super().check()
        _check_pattern(self.pattern)
        least = 257 + len(self.added_tokens)
        if self.vocab_size < least:
            what = "an end-of-text token" if least == 257 else f"{least - 256} special tokens"
            raise UserError(f"tokenizer.vocab_size={self.vocab_size} must be at least {least}: the bytes and {what}")

    @property
    def known_vocab_size(self) -> int | None:
        return self.vocab_size


@register("tokenizer", "unigram")
class UnigramConfig(TokenizerConfig):
    """A unigram language model over bytes, trained on the training split."""

    trained: ClassVar[bool] = True
    vocab_size: int = 4096

    def build(self, texts):
        from gptlab.data.tokenizers.unigram import build_unigram

        return build_unigram(self, texts)

    def check(self) -> None:
        super().check()
        least = 257 + len(self.added_tokens)
        if self.vocab_size < least:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least {least}: the bytes and {least - 256} special "
                f"token{'s' * (least > 257)}"
            )

    @property
    def known_vocab_size(self) -> int | None:
        return self.vocab_size


@register("tokenizer", "wordpiece")
class WordPieceConfig(TokenizerConfig):
    """BERT's WordPiece, trained on the training split."""

    trained: ClassVar[bool] = True
    vocab_size: int = 4096
    lowercase: bool = True  # and without accents

    def build(self, texts):
        from gptlab.data.tokenizers.wordpiece import build_wordpiece

        return build_wordpiece(self, texts)

    def check(self) -> None:
        super().check()
        if self.special_tokens:
            raise UserError(
                f"tokenizer=wordpiece has its own special tokens ({' '.join(BERT_SPECIAL_TOKENS)}) and takes no "
                f"tokenizer.special_tokens={shown(self.special_tokens)}; leave it out"
            )
        least = len(BERT_SPECIAL_TOKENS) + self.n_sentinel_tokens + 2
        if self.vocab_size < least:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least {least}: {least - 2} special tokens and a "
                "character at the beginning and within a word"
            )

    @property
    def known_vocab_size(self) -> int | None:
        return self.vocab_size

    @property
    def chat_tokens(self) -> dict[str, str]:
        return {"bos_token": "[CLS]", "eos_token": "[SEP]"}


@register("tokenizer", "file")
class TokenizerFileConfig(TokenizerConfig):
    """The tokenizer.json of a run, or any of the `tokenizers` library; `n_sentinel_tokens` is what it must have."""

    path: str | None = None
    eot: str | None = None  # the library's end-of-text token; null: as the files beside it say, else by the usual names

    def build(self, texts):
        from gptlab.data.tokenizers.file import open_tokenizer_file

        return open_tokenizer_file(self)

    @classmethod
    def restore(cls, state):
        import json

        from gptlab.data.tokenizers.file import FileTokenizer

        return FileTokenizer(json.dumps(state["tokenizer"]), state["eot"])

    def identity(self):
        import hashlib

        from gptlab.data.tokenizers.file import end_of_text_beside, read_tokenizer_file

        text = read_tokenizer_file(self)
        eot = self.eot or end_of_text_beside(self, text)
        return super().identity() | {"path": hashlib.sha256(text.encode()).hexdigest(), "eot": eot}

    def check(self) -> None:
        if self.path is None:
            raise UserError("tokenizer=file reads a tokenizer.json; name it with tokenizer.path=FILE")
        if self.special_tokens:
            raise UserError(
                "tokenizer=file has its own special tokens and takes no "
                f"tokenizer.special_tokens={shown(self.special_tokens)}; leave it out, and use a tokenizer.json that "
                "has the tokens"
            )
        super().check()
