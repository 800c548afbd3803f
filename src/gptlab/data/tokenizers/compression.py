"""How many tokens a tokenizer makes of a text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from gptlab.data.sources.source import TextChunk
from gptlab.data.tokenizers.tokenizer import Tokenizer, lost_text
from gptlab.errors import UserError


@dataclass(slots=True)
class Compression:
    """Counts over documents, without end-of-text tokens.

    `lost` is an example of what encoding and decoding lose, None where every text came back.
    """

    n_documents: int = 0
    n_tokens: int = 0
    n_characters: int = 0
    n_bytes: int = 0
    lost: str | None = None

    @property
    def bytes_per_token(self) -> float:
        """The larger, the fewer steps a model takes over a text."""
        return self.n_bytes / self.n_tokens if self.n_tokens else 0.0

    @property
    def characters_per_token(self) -> float:
        """The same in characters, which differs from bytes outside ASCII."""
        return self.n_characters / self.n_tokens if self.n_tokens else 0.0


def compression(
    tokenizer: Tokenizer, chunks: Iterable[TextChunk], advance: Callable[[int], None] = lambda n_bytes: None
) -> Compression:
    """The counts over a corpus's chunks, read once and never held whole; UserError names the document that fails."""
    found = Compression()
    for (_, name), run in groupby(chunks, key=lambda chunk: (chunk.document, chunk.name)):
        found.n_documents += 1
        try:
            for text in tokenizer.chunks(chunk.text for chunk in run):
                ids = tokenizer.encode(text)
                n_bytes = len(text.encode("utf-8", "surrogatepass"))
                found.n_tokens += len(ids)
                found.n_characters += len(text)
                found.n_bytes += n_bytes
                if not tokenizer.is_lossless and found.lost is None:
                    found.lost = lost_text(text, tokenizer.decode(ids))
                advance(n_bytes)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    return found
