"""How positions enter: a table that is added, rotary frequencies, or biases of the scores by distance."""

import base64
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.lab.inspection.subject import Subject
from gptlab.nn.position import RelativeBias, Rotary, Sinusoidal
from gptlab.nn.rope_scaling import frequencies

N_POSITIONS = 1_024  # of a table, the first ones
N_ROWS, N_COLUMNS = 128, 160  # of a picture
N_DISTANCES = 256


@torch.no_grad()
def positions(subject: Subject) -> dict[str, Any] | None:
    """What the model knows of positions: `table`, `rotary` and `biases`, of which a model usually has one."""
    model, found = subject.model, {}
    for name, module in model.named_modules():
        if isinstance(module, Sinusoidal):
            found["table"] = {"kind": "sinusoidal", **_table(module.table)}
        elif isinstance(module, nn.Embedding) and name == "pos_emb":
            found["table"] = {"kind": "learned", **_table(module.weight.float())}
        elif isinstance(module, Rotary):
            found["rotary"] = _rotary(module)
        elif isinstance(module, RelativeBias):
            found.setdefault("biases", []).append({"name": name, **_biases(module)})
    return found or None


def _table(values: Tensor) -> dict[str, Any]:
    """A picture of a table (T, D), and how alike two positions are by their distance: the mean cosine."""
    values = values[:N_POSITIONS]
    unit = F.normalize(values, dim=-1)
    cosines = unit @ unit.T  # (T, T)
    n = len(values)
    rows, columns = _every(n, N_ROWS), _every(values.shape[1], N_COLUMNS)
    picture, largest = values[rows][:, columns], values.abs().max().item()
    return {
        "rows": rows,
        "columns": columns,
        "largest": largest,
        "values": _signed_bytes(picture / (largest or 1.0)),
        "cosines": _signed_bytes(cosines[rows][:, rows]),
        "distances": list(range(min(n, N_DISTANCES))),
        "cosine_by_distance": [cosines.diagonal(distance).mean().item() for distance in range(min(n, N_DISTANCES))],
    }


def _rotary(module: Rotary) -> dict[str, Any]:
    """The frequency of each pair of channels, and what turning leaves of the score of two equal vectors."""
    n_positions, _, width = module.cos.shape
    own = frequencies(width, module.theta)
    own = own if module.scaled is None else module.scaled(own)  # (K/2,), radians per token
    distances = [distance for distance in range(min(n_positions, N_DISTANCES))]
    return {
        "theta": module.theta,
        "context": n_positions,
        "frequencies": own.tolist(),
        "wavelengths": (2 * math.pi / own).tolist(),
        "distances": distances,
        "cosine_by_distance": [torch.cos(own * distance).mean().item() for distance in distances],
    }


def _biases(module: RelativeBias) -> dict[str, Any]:
    """What is added to the scores of each head, by the key's position less the query's."""
    reach = min(N_DISTANCES // 2, module.max_distance + module.max_distance // 4)
    keys = torch.arange(-reach, reach + 1 if module.bidirectional else 1, device=module.table.weight.device)
    return {"distances": keys.tolist(), "heads": module(torch.zeros_like(keys[:1]), keys)[:, 0].float().tolist()}


def _every(n: int, limit: int) -> list[int]:
    step = -(-n // limit)
    return list(range(0, n, step))


def _signed_bytes(values: Tensor) -> str:
    """Values from -1 to 1 as signed bytes in base64, row by row."""
    return base64.b64encode((values.float() * 127).round().to(torch.int8).cpu().numpy().tobytes()).decode("ascii")
