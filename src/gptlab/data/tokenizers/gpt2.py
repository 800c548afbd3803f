"""GPT-2's byte-pair encoding."""

from collections.abc import Iterable
from typing import Any

from gptlab.data.tokenizers.bpe import BPETokenizer, TiktokenTokenizer, encode_bytes
from gptlab.data.tokenizers.config import BPEConfig
from gptlab.data.tokenizers.tokenizer import vocabulary_fingerprint
from gptlab.errors import UserError


class GPT2Tokenizer(TiktokenTokenizer):
    """GPT-2's byte-pair encoding, vocabulary of 50,257 (Radford et al. 2019)."""

    type = "gpt2"

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        import tiktoken

        try:
            encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests, ssl, proxies and the file system each have their own
            raise UserError(
                f"tokenizer=gpt2: GPT-2's vocabulary is not cached and cannot be downloaded ({type(error).__name__}); "
                "set TIKTOKEN_CACHE_DIR to a folder that holds it, or use tokenizer=bpe or tokenizer=byte, which need "
                "no download"
            ) from error
        vocabulary = [encoding.decode_single_token_bytes(rank) for rank in range(encoding.eot_token)]
        super().__init__(vocabulary, special_tokens, vocabulary_fingerprint(self.type, b"".join(vocabulary)))

    def portable(self) -> dict[str, Any]:
        # Ranks are loaded five times faster than GPT-2's own files.
        same = {"type": BPETokenizer.type, "vocabulary": encode_bytes(self._vocabulary), **self._added_state()}
        return {"module": BPEConfig.__module__, **same}

    def state(self) -> dict[str, Any]:
        return {"name": "gpt2", **self._added_state()}
