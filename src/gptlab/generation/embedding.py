"""Embeddings of whole texts, and how similar they are."""

from collections.abc import Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.generation.fill_mask import enclosed
from gptlab.generation.prompt import check_length, encode_text, pad
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability

BATCH_TOKENS = 16_384  # in one forward pass


class Pooling(Enum):
    """How one vector is made of the states of a text's tokens."""

    mean = "mean"  # of all tokens (Sentence-BERT, arXiv:1908.10084, section 3)
    cls = "cls"  # the state of the first token
    last = "last"  # the state of the last token
    pooler = "pooler"  # BERT's, over the first token's state


@torch.no_grad()
def embed(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str], *, pooling: Pooling | None = None
) -> Tensor:
    """One vector for each text: float32 (n texts, D), on the CPU, of the last block's states.

    An encoder reads the text between its special tokens, which count in the mean; a causal model after its
    beginning-of-text token. `pooling` None is the mean. UserError for a text that is empty or longer than the context,
    and for pooling that the model does not have.
    """
    bidirectional = Capability.bidirectional in model.config.capabilities
    if not bidirectional and Capability.causal not in model.config.capabilities:
        raise UserError(
            f"a model of type {model.config.type} reads a text only together with another; use an encoder or a causal "
            "model"
        )
    pooling = pooling or Pooling.mean
    if pooling is Pooling.pooler and Capability.pooler not in model.config.capabilities:
        raise UserError("pooling=pooler needs a model that was trained with a pooler; use pooling=mean")
    if pooling is Pooling.cls and not bidirectional:
        raise UserError("pooling=cls is the first token's state, which sees no other here; use pooling=mean or last")
    encoded = []
    for number, text in enumerate(texts, 1):
        name = f"text {number} of {len(texts)}" if len(texts) > 1 else "the text"
        ids = encode_text(text, tokenizer, name)
        encoded.append(enclosed(ids, tokenizer) if bidirectional else [*tokenizer.beginning, *ids])
        check_length(encoded[-1], model, name)
    device, found = next(model.parameters()).device, []
    was_training = model.training
    try:
        model.eval()
        size = max(1, BATCH_TOKENS // max(map(len, encoded), default=1))
        for start in range(0, len(encoded), size):
            tokens, mask = pad(encoded[start : start + size], device)  # (B, T)
            hidden = model.hidden_states(tokens, attention_mask=mask)  # (B, T, D)
            found.append(_pooled(model, hidden.float(), mask, pooling).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(found) if found else torch.empty(0, model.config.d_model)


def cosine_similarity(vectors: Tensor) -> Tensor:
    """The cosine of the angle between each two of the vectors (n, D) -> (n, n)."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def _pooled(model: LanguageModel, hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    match pooling:
        case Pooling.mean:
            weights = mask[..., None].to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1)
        case Pooling.cls:
            return hidden[:, 0]
        case Pooling.last:
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return model.pooled(hidden)
