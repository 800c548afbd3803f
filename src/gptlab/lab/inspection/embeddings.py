"""Token embeddings: nearest neighbours, angles, and how alike the tokens of the text are."""

import base64
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.lab.inspection.subject import Subject

N_CHOSEN = 24  # tokens of the text
N_NEIGHBOURS = 8
CARRIED_BYTES = 700_000  # of the whole table, a byte for each value


@torch.no_grad()
def embeddings(subject: Subject) -> dict[str, Any] | None:
    """Cosines and angles between embeddings of the text's tokens, and the nearest tokens of the vocabulary.

    A small table goes along whole, in 8 bits, so that the page can look up any token.
    """
    table = token_embeddings(subject)
    if table is None:
        return None
    unit = F.normalize(table, dim=-1)
    ids = [token for tokens in (subject.source, subject.tokens) if tokens is not None for token in tokens[0].tolist()]
    chosen = [token for token in dict.fromkeys(ids) if token < len(table)][:N_CHOSEN]
    if not chosen:
        return None
    cosines = (unit[chosen] @ unit.T).clamp(-1, 1)  # (N, V)
    best = cosines.topk(min(N_NEIGHBOURS + 1, len(table)))
    neighbours = [
        [
            {"token": subject.text_of(other), "cosine": cosine, "degrees": degrees(cosine)}
            for other, cosine in zip(others, values, strict=True)
            if other != own
        ][:N_NEIGHBOURS]
        for own, others, values in zip(chosen, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    norms = table.norm(dim=-1)
    found = {
        "tokens": [subject.text_of(token) for token in chosen],
        "norms": norms[chosen].tolist(),
        "mean_norm": norms.mean().item(),
        "cosines": cosines[:, chosen].tolist(),
        "neighbours": neighbours,
        "table": None,
    }
    if table.numel() <= CARRIED_BYTES:
        largest = table.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        whole = (table / largest * 127).round().to(torch.int8).cpu().numpy().tobytes()
        texts = [subject.text_of(token) for token in range(len(table))]
        found["table"] = {"values": base64.b64encode(whole).decode("ascii"), "width": table.shape[1], "texts": texts}
    return found


def degrees(cosine: float) -> float:
    """The angle of a cosine."""
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def token_embeddings(subject: Subject) -> Tensor | None:
    """The embeddings of the tokenizer's tokens (V, D) in float32; None where the model has no such table."""
    n = subject.tokenizer.vocab_size
    own = getattr(subject.model, "tok_emb", None)
    tables = [own] if isinstance(own, nn.Embedding) else subject.model.modules()
    found = next((one for one in tables if isinstance(one, nn.Embedding) and one.num_embeddings >= n), None)
    return None if found is None else found.weight[:n].float()
