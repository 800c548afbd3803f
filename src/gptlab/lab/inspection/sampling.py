"""The next token's logits, from which the page computes what a setting of generation does to the distribution."""

import base64
from typing import Any

import torch
from torch import Tensor

from gptlab.lab.inspection.subject import Subject

N_TEXTS = 2_000  # of the most likely tokens, which have their text on the page


@torch.no_grad()
def sampling(subject: Subject) -> dict[str, Any] | None:
    """The logits of the whole vocabulary after the text, in float32, with the texts of the most likely tokens.

    Those of an encoder-decoder whose text has ended are of the first token that it writes.
    """
    if not subject.is_causal:
        return None
    hidden = subject.model.hidden_states(subject.tokens, **subject.inputs)[0]  # (T, D)
    position = len(hidden) - 1
    logits = _logits(subject, hidden[position])
    if subject.source is not None and int(logits.argmax()) in (subject.model.end_ids or {subject.tokenizer.eot}):
        position = 0
        logits = _logits(subject, hidden[position])
    seen = subject.tokens[0, : position + 1].tolist()  # which the repetition penalty is about
    best = logits.topk(min(N_TEXTS, len(logits))).indices.tolist()
    known = [token for token in dict.fromkeys([*best, *seen]) if token < len(logits)]
    return {
        "logits": packed(logits),
        "seen": seen,
        "texts": {str(token): subject.text_of(token) for token in known},
        "position": position,
    }


def packed(values: Tensor) -> str:
    """Values as the page reads them: little-endian float32 in base64."""
    return base64.b64encode(values.detach().float().cpu().numpy().astype("<f4").tobytes()).decode("ascii")


def _logits(subject: Subject, hidden: Tensor) -> Tensor:
    return subject.logits(hidden)[: subject.tokenizer.vocab_size]  # (V,)
