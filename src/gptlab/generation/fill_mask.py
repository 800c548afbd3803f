"""Masked tokens of a text, filled by an encoder."""

from dataclasses import dataclass

import torch

from gptlab.data.tokenizers.tokenizer import Tokenizer, split_at
from gptlab.errors import UserError
from gptlab.generation.prompt import check_length
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability

TOP_K = 5
SPELLINGS = ("[MASK]", "<mask>")  # BERT's and RoBERTa's, whichever the tokenizer has


@dataclass(slots=True)
class Filled:
    """A token for a mask, its probability, and the text with it."""

    token: int
    text: str
    probability: float
    sequence: str  # the whole text, other masks as they were


@torch.no_grad()
def fill_mask(model: LanguageModel, tokenizer: Tokenizer, text: str, *, top_k: int = TOP_K) -> list[list[Filled]]:
    """The `top_k` most likely tokens for each mask of a text, in their order; each mask by itself.

    A mask is written [MASK] or <mask>. UserError for a text without one or longer than the context, and for a model
    that has not learned to fill masks.
    """
    if Capability.mlm_head not in model.config.capabilities:
        raise UserError(
            f"a model of type {model.config.type} fills no masks; use an encoder with a masked-language-model head, "
            "such as one trained with objective=masked_lm"
        )
    if tokenizer.mask is None:
        raise UserError(f"the model's tokenizer has no mask token, such as {SPELLINGS[0]}; use a model that has one")
    parts = split_at(SPELLINGS, text)
    if not set(SPELLINGS) & set(parts):
        raise UserError(f"the text has no mask; write {SPELLINGS[0]} where a token is wanted")
    ids = [[tokenizer.mask] if part in SPELLINGS else tokenizer.encode(part).tolist() for part in parts]
    tokens = enclosed([token for part in ids for token in part], tokenizer)
    check_length(tokens, model, "the text")
    places = [i for i, token in enumerate(tokens) if token == tokenizer.mask]
    was_training = model.training
    try:
        model.eval()
        hidden = model.hidden_states(torch.tensor([tokens], device=next(model.parameters()).device))[0]  # (T, D)
        logits = model.head.logits(model.mlm_transform(hidden[places])).float()[:, : tokenizer.vocab_size]
    finally:
        model.train(was_training)
    best = torch.softmax(logits, -1).topk(min(top_k, logits.shape[-1]))
    masks = [i for i, part in enumerate(parts) if part in SPELLINGS]
    return [
        [
            Filled(token, filled := tokenizer.decode([token]), p, _replaced(parts, mask, filled))
            for token, p in zip(tokens_, values, strict=True)
        ]
        for mask, tokens_, values in zip(masks, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def enclosed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text between the special tokens that encoders read around it, where the tokenizer has them."""
    before = [] if tokenizer.cls is None else [tokenizer.cls]
    after = [] if tokenizer.sep is None else [tokenizer.sep]
    return [*before, *ids, *after]


def _replaced(parts: list[str], mask: int, text: str) -> str:
    # WordPiece spells a token that continues a word with ## before it.
    before = "".join(parts[:mask])
    joined = before.rstrip() + text[2:] if text.startswith("##") else before + text
    return joined + "".join(parts[mask + 1 :])
