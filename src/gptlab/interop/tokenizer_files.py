"""Our tokenizers as the files that transformers' AutoTokenizer opens, and GPT-2's kind from its older files."""

import base64
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.bpe import byte_alphabet
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from gptlab.errors import UserError
from gptlab.interop.external_folder import read_json

SPLIT_EVERYWHERE = r"[\s\S]"


def tokenizer_files(tokenizer: Tokenizer, context_length: int) -> dict[str, dict[str, Any]]:
    """The content of tokenizer.json and tokenizer_config.json; same text, same ids.

    One difference is theirs: an end-of-text or special word that is spelled out in a text becomes that word's id.
    """
    eot = END_OF_TEXT if tokenizer.type != "file" else tokenizer.portable()["eot"]
    words = {} if tokenizer.eot is None else {"bos_token": eot, "eos_token": eot}
    if len(tokenizer.beginning) == 1:
        words["bos_token"] = tokenizer.decode(tokenizer.beginning)
    for role in ("mask", "pad", "cls", "sep"):
        number = getattr(tokenizer, role)
        # What begins and ends texts in other vocabularies may be used as these two, which only the files can say.
        if number is not None and (spelled := tokenizer.decode([number])) not in ("<s>", "</s>"):
            words[f"{role}_token"] = spelled
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **words,
    }
    return {"tokenizer.json": _content(tokenizer), "tokenizer_config.json": settings}


def byte_pair_tokenizer(
    vocabulary: Path, merges: Path, *, added: Path | None = None, add_prefix_space: bool = False, eot: str | None = None
) -> FileTokenizer:
    """GPT-2's kind of tokenizer from the files it was published in.

    `vocabulary` is JSON with the id of each word, `merges` a text with two words a line, and `added` JSON with the ids
    of words that were added later. ValueError where they do not go together.
    """
    from tokenizers import models

    words = read_json(vocabulary)
    extra = read_json(added) if added is not None else {}
    try:
        lines = re.sub(r"\A#version.*", "", merges.read_text(encoding="utf-8")).splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line]
        foreign = _byte_level(models.BPE(vocab=words, merges=pairs), add_prefix_space=add_prefix_space)
        special = [word for word in (END_OF_TEXT,) if word in words] + sorted(extra, key=extra.get)
        foreign.add_special_tokens(_added(special))
        wrong = [word for word, number in extra.items() if foreign.token_to_id(word) != number]
        if wrong:
            raise UserError(f"{wrong[0]} cannot have the id {extra[wrong[0]]}")
        return FileTokenizer(foreign.to_str(), eot)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{vocabulary} and {merges} are not the files of a GPT-2 tokenizer ({error})") from error


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    from tokenizers import Regex, decoders, models, pre_tokenizers
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
            foreign.add_special_tokens(_added(tokenizer.special_tokens))
            return json.loads(foreign.to_str())
        case "byte":
            words = [bytes([byte]) for byte in range(256)]
        case _:
            words = [base64.b64decode(word) for word in state["vocabulary"]]
    character_of = {byte: character for character, byte in byte_alphabet().items()}
    spelled = ["".join(character_of[byte] for byte in word) for word in words]
    model = models.BPE(
        vocab={word: rank for rank, word in enumerate(spelled)},
        merges=[(spelled[a], spelled[b]) for a, b in _merges(words)],
        ignore_merges=True,  # as tiktoken: a piece that is a word is that word
    )
    foreign = _byte_level(model)
    foreign.add_special_tokens(_added([END_OF_TEXT, *tokenizer.special_tokens]))
    return json.loads(foreign.to_str())


def _added(words: Iterable[str]) -> list:
    """Special words as the tokenizers library takes them; their ids follow the vocabulary's."""
    from tokenizers import AddedToken

    return [AddedToken(word, special=True, normalized=False) for word in words]


def _byte_level(model, *, add_prefix_space: bool = False):
    """A tokenizer of the tokenizers library that splits as GPT-2 does, around its `model`."""
    from tokenizers import Tokenizer as Foreign
    from tokenizers import decoders, pre_tokenizers

    foreign = Foreign(model)
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    foreign.decoder = decoders.ByteLevel()
    return foreign


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
