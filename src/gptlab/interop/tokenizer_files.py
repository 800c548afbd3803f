"""Our tokenizers as the files that transformers' AutoTokenizer opens."""

import base64
import json
from itertools import pairwise
from typing import Any

from gptlab.data.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

SPLIT_EVERYWHERE = r"[\s\S]"


def tokenizer_files(tokenizer: Tokenizer, context_length: int) -> dict[str, dict[str, Any]]:
    """The content of tokenizer.json and tokenizer_config.json; same text, same ids.

    One difference is theirs: an end-of-text word that is spelt out in a text becomes that word's id.
    """
    eot = END_OF_TEXT if tokenizer.kind != "file" else tokenizer.portable()["eot"]
    words = {} if tokenizer.eot is None else {"bos_token": eot, "eos_token": eot}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **words,
    }
    return {"tokenizer.json": _content(tokenizer), "tokenizer_config.json": settings}


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Foreign

    state = tokenizer.portable()
    match state["kind"]:
        case "file":
            return state["tokenizer"]
        case "char":
            # Without a word for the unknown it refuses unknown characters, as ours does.
            vocabulary = {character: number for number, character in enumerate(state["characters"])}
            foreign = Foreign(models.WordLevel(vocabulary, unk_token="<unk>"))
            foreign.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT_EVERYWHERE), behavior="isolated")
            foreign.decoder = decoders.Fuse()
            return json.loads(foreign.to_str())
        case "byte":
            words = [bytes([byte]) for byte in range(256)]
        case _:
            words = [base64.b64decode(word) for word in state["words"]]
    character_of = {byte: character for character, byte in byte_alphabet().items()}
    spelt = ["".join(character_of[byte] for byte in word) for word in words]
    model = models.BPE(
        vocab={word: rank for rank, word in enumerate(spelt)},
        merges=[(spelt[a], spelt[b]) for a, b in _merges(words)],
        ignore_merges=True,  # as tiktoken: a piece that is a word is that word
    )
    foreign = Foreign(model)
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    foreign.decoder = decoders.ByteLevel()
    foreign.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return json.loads(foreign.to_str())


def _merges(words: list[bytes]) -> list[tuple[int, int]]:
    """The two words that each word of a byte-pair encoding is merged from, by rank.

    They are what the merges of lower rank make of its bytes.
    """
    ranks = {word: rank for rank, word in enumerate(words)}
    merges = []
    for rank, word in enumerate(words):
        parts = [word[i : i + 1] for i in range(len(word))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(joined)
            if best >= rank:
                break
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges
