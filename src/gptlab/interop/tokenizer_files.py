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
from gptlab.data.tokenizers.split_pattern import split_pattern
from gptlab.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from gptlab.data.tokenizers.training import byte_level_split
from gptlab.errors import UserError
from gptlab.interop.external_folder import read_json

SPLIT_EVERYWHERE = r"[\s\S]"


def tokenizer_files(tokenizer: Tokenizer, context_length: int) -> dict[str, dict[str, Any]]:
    """The content of tokenizer.json and tokenizer_config.json; same text, same ids.

    One difference is theirs: an end-of-text or special token that is spelled out in a text becomes that token's id.
    """
    eot = END_OF_TEXT if tokenizer.type != "file" else tokenizer.portable()["eot"]
    special = {} if tokenizer.eot is None else {"bos_token": eot, "eos_token": eot}
    if len(tokenizer.beginning) == 1:
        special["bos_token"] = tokenizer.decode(tokenizer.beginning)
    for role in ("mask", "pad", "cls", "sep"):
        number = getattr(tokenizer, role)
        # The tokens that begin and end texts in other vocabularies may have these roles, which only the files can tell.
        if number is not None and (spelled := tokenizer.decode([number])) not in ("<s>", "</s>"):
            special[f"{role}_token"] = spelled
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    return {"tokenizer.json": _content(tokenizer), "tokenizer_config.json": settings}


def byte_pair_tokenizer(
    vocabulary: Path, merges: Path, *, added: Path | None = None, add_prefix_space: bool = False, eot: str | None = None
) -> FileTokenizer:
    """GPT-2's kind of tokenizer from the files it was published in.

    `vocabulary` is JSON with the id of each token, `merges` a text with two tokens per line, and `added` JSON with the
    ids of tokens that were added later. UserError where they do not match.
    """
    from tokenizers import models

    vocab = read_json(vocabulary)
    extra = read_json(added) if added is not None else {}
    try:
        lines = re.sub(r"\A#version.*", "", merges.read_text(encoding="utf-8")).splitlines()
        pairs: list[Any] = [tuple(line.split(" ")) for line in lines if line]
        library = _byte_level(models.BPE(vocab=vocab, merges=pairs), add_prefix_space=add_prefix_space)
        special = [token for token in (END_OF_TEXT,) if token in vocab] + sorted(extra, key=extra.__getitem__)
        library.add_special_tokens(_added(special))
        wrong = [token for token, number in extra.items() if library.token_to_id(token) != number]
        if wrong:
            raise UserError(f"{wrong[0]} cannot have the id {extra[wrong[0]]}")
        return FileTokenizer(library.to_str(), eot)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{vocabulary} and {merges} are not the files of a GPT-2 tokenizer ({error})") from error


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as LibraryTokenizer

    state = tokenizer.portable()
    match state["type"]:
        case "file":
            return state["tokenizer"]
        case "char":
            # Without an unknown token it refuses unknown characters, as ours does.
            vocabulary = {character: number for number, character in enumerate(state["characters"])}
            library = LibraryTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
            library.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT_EVERYWHERE), behavior="isolated")
            library.decoder = decoders.Fuse()
            library.add_special_tokens(_added(tokenizer.special_tokens))
            return json.loads(library.to_str())
        case "byte":
            vocab = [bytes([byte]) for byte in range(256)]
        case _:
            vocab = [base64.b64decode(token) for token in state["vocabulary"]]
    character_of = {byte: character for character, byte in byte_alphabet().items()}
    spelled = ["".join(character_of[byte] for byte in token) for token in vocab]
    model = models.BPE(
        vocab={token: rank for rank, token in enumerate(spelled)},
        merges=[(spelled[a], spelled[b]) for a, b in _merges(vocab)],
        ignore_merges=True,  # as tiktoken: a piece that is in the vocabulary is one token
    )
    library = _byte_level(model)
    if (pattern := state.get("pattern", "gpt2")) != "gpt2":
        library.pre_tokenizer = byte_level_split(split_pattern(pattern).expression)
    library.add_special_tokens(_added([END_OF_TEXT, *tokenizer.special_tokens]))
    return json.loads(library.to_str())


def _added(tokens: Iterable[str]) -> list:
    """Special tokens for the tokenizers library; their ids follow the vocabulary's."""
    from tokenizers import AddedToken

    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _byte_level(model, *, add_prefix_space: bool = False):
    """A tokenizer of the tokenizers library that splits as GPT-2 does, around its `model`."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, pre_tokenizers

    library = LibraryTokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    library.decoder = decoders.ByteLevel()
    return library


def _merges(vocab: list[bytes]) -> list[tuple[int, int]]:
    """The two tokens that each token of a byte-pair encoding is merged from, by rank.

    They are what the merges of lower rank make of its bytes.
    """
    ranks = {token: rank for rank, token in enumerate(vocab)}
    merges = []
    for rank, token in enumerate(vocab):
        parts = [token[i : i + 1] for i in range(len(token))]
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
