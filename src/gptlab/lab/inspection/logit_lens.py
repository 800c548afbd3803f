"""Logit lens: what the output head makes of each layer's state."""

import math
from typing import Any

import torch
from torch import Tensor

from gptlab.lab.inspection.subject import Subject
from gptlab.nn.loss import IGNORE_INDEX


def logit_lens(subject: Subject) -> dict[str, Any] | None:
    """What the model would predict if each layer were its last (nostalgebraist 2020; arXiv:2303.08112, section 2).

    `layers` begins with the embedding and has, by position, the most likely token, its text and probability, the
    entropy in nats, the divergence KL(last || layer) in nats, and the target's loss in nats (None without a target).
    None where no head scores the states, and where they are not what `layer_states` asks for.
    """
    if not subject.has_head:
        return None
    names, states = layer_states(subject)
    if states is None:
        return None
    with torch.no_grad():
        last = torch.log_softmax(subject.logits(states[-1]), -1)  # (T, V)
        layers = [_layer(subject, name, state, last) for name, state in zip(names, states, strict=True)]
    targets = None if subject.targets is None else subject.targets[0].tolist()
    return {
        "vocab_size": last.shape[-1],
        "uniform": math.log(last.shape[-1]),
        "is_causal": subject.is_causal,
        "targets": targets and [None if t == IGNORE_INDEX else subject.text_of(t) for t in targets],
        "read": subject.labels(subject.read),
        "layers": layers,
    }


@torch.no_grad()
def layer_states(subject: Subject) -> tuple[list[str], Tensor | None]:
    """What the head would read if each layer were the last, (L + 1, T, D): of the embedding, then of each block.

    The model runs once as it is, and once with the states of all layers in place of the last block's output, so that
    whatever follows that block is applied to all. It reads other tokens then: where the last layer's states come out
    different, more than the last block's output leads to them. None then, and where a block's output is not what the
    next one reads.
    """
    model, blocks = subject.model, list(subject.model.output_blocks)
    names = {id(module): name for name, module in model.named_modules()}
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        inputs.append(args[0] if args else next(iter(kwargs.values())))

    def after(_: Any, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    def replace(_: Any, __: Any, output: Any) -> Any:
        states = torch.cat([inputs[0], *outputs])  # (L + 1, T, D)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        whole = model.hidden_states(subject.read, **subject.inputs)
    finally:
        for handle in handles:
            handle.remove()
    is_chain = len(outputs) == len(blocks) > 0 and inputs[0].shape == outputs[-1].shape
    if not is_chain or not all(map(torch.equal, inputs[1:], outputs[:-1])):
        return [], None
    handle = blocks[-1].register_forward_hook(replace)
    try:
        others = (subject.read + 1) % len(model.head.weight)
        states = model.hidden_states(others, **subject.inputs)
    finally:
        handle.remove()
    own = states.shape == (len(blocks) + 1, *whole.shape[1:]) and torch.allclose(states[-1], whole[0], 1e-3, 1e-4)
    return ["embedding", *(names[id(block)] for block in blocks)], states if own else None


def _layer(subject: Subject, name: str, state: Tensor, last: Tensor) -> dict[str, Any]:
    log_p = torch.log_softmax(subject.logits(state), -1)  # (T, V)
    best = log_p.max(-1)
    kl = (last.exp() * (last - log_p)).nan_to_num(0.0).sum(-1)
    loss = None
    if subject.targets is not None:
        targets = subject.targets[0]
        nats = -log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        loss = [
            None if t == IGNORE_INDEX else round(n, 4) for t, n in zip(targets.tolist(), nats.tolist(), strict=True)
        ]
    return {
        "name": name,
        "token": best.indices.tolist(),
        "text": [subject.text_of(token) for token in best.indices.tolist()],
        "probability": _rounded(best.values.exp()),
        "entropy": _rounded(torch.special.entr(log_p.exp()).sum(-1)),
        "kl": _rounded(kl.clamp(min=0)),
        "loss": loss,
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]
