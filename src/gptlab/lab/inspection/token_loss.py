"""What each token of the text costs: the cross-entropy and the perplexity of a text, token by token."""

import math
from typing import Any, NamedTuple

import torch

from gptlab.lab.inspection.subject import Subject
from gptlab.lab.step import ShownToken, shown_tokens
from gptlab.lab.step_page import readable, scale_of
from gptlab.nn.loss import IGNORE_INDEX


class _Scored(NamedTuple):
    token: int
    nats: float | None  # None: it is not predicted


@torch.no_grad()
def token_loss(subject: Subject) -> dict[str, Any] | None:
    """-log p of each target in nats, its probability and its rank, and the most likely token there.

    `text` are the pieces that a person reads, each with its nats; where a character is of several tokens, their sum.
    """
    if subject.targets is None or not (subject.targets != IGNORE_INDEX).any():
        return None
    logits = subject.logits(subject.model.hidden_states(subject.read, **subject.inputs))[0]  # (T, V)
    log_p = torch.log_softmax(logits, -1)
    targets = subject.targets[0].tolist()
    rows: list[dict[str, Any]] = []
    nats: list[float | None] = [None] * len(targets)
    for i, target in enumerate(targets):
        if target == IGNORE_INDEX:
            continue
        own, best = log_p[i, target].item(), int(log_p[i].argmax())
        nats[i] = -own
        rows.append(
            {
                "token": subject.text_of(target),
                "nats": -own,
                "p": math.exp(own),
                "rank": 1 + int((log_p[i] > log_p[i, target]).sum()),
                "best": subject.text_of(best),
                "best_p": log_p[i, best].exp().item(),
            }
        )
    mean = math.fsum(row["nats"] for row in rows) / len(rows)
    return {
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "scale": scale_of(logits.shape[-1]),
        "text": [[readable(one.text), one.nats] for one in _text(subject, targets, nats)],
        "rows": rows,
    }


def _text(subject: Subject, targets: list[int], nats: list[float | None]) -> list[ShownToken]:
    """The text with the cost of each token: a decoder's begins with one that nothing predicts."""
    tokens = subject.tokens[0].tolist()
    if subject.masked is not None:
        scored = [_Scored(token, cost) for token, cost in zip(tokens, nats, strict=True)]
    else:
        scored = [_Scored(target, cost) for target, cost in zip(targets, nats, strict=True) if cost is not None]
        scored = scored if subject.source is not None else [_Scored(tokens[0], None), *scored]
    if any(one.token >= subject.tokenizer.vocab_size for one in scored):
        return [ShownToken(subject.text_of(one.token), one.nats) for one in scored]
    return shown_tokens(subject.tokenizer, scored)
