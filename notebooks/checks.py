"""Checks of answers, for the exercises of the notebooks."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def check(
    exercise: str,
    answer: Any,
    right: Any,
    *,
    tolerance: float = 1e-6,
    mistakes: Sequence[tuple[Any, str]] = (),
    hint: str = "",
) -> bool:
    """Print whether an answer is right, and if not, what may be wrong; returns whether it is.

    Answers are texts, numbers, or arrays and lists of numbers; numbers may differ by `tolerance`, relative to the
    largest right one. `mistakes` are known wrong answers, each with what leads to it. `...` and None are no answer
    yet, and so is a list that holds one of them.
    """
    end = f" {hint}" if hint else ""
    if any(part is None or part is ... for part in (answer if isinstance(answer, list | tuple) else [answer])):
        print(f"{exercise}: no answer yet.{end}")
        return False
    answer, right = _plain(answer), _plain(right)
    if _alike(answer, right, tolerance):
        print(f"{exercise}: right.")
        return True
    for wrong, reason in mistakes:
        if _alike(answer, _plain(wrong), tolerance):
            print(f"{exercise}: not right: {reason}")
            return False
    print(f"{exercise}: not right{_difference(answer, right)}.{end}")
    return False


def _plain(value: Any) -> Any:
    """Texts as they are, anything else as an array; tensors too."""
    if isinstance(value, str):
        return value
    try:
        return np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=float)
    except (TypeError, ValueError):
        return value


def _alike(answer: Any, right: Any, tolerance: float) -> bool:
    if not (isinstance(answer, np.ndarray) and isinstance(right, np.ndarray)):
        return type(answer) is type(right) and bool(np.all(answer == right))
    if answer.shape != right.shape:
        return False
    finite = np.abs(right[np.isfinite(right)])
    limit = tolerance * (finite.max() if finite.size else 1.0)
    return bool(np.allclose(answer, right, rtol=0, atol=limit, equal_nan=True))


def _difference(answer: Any, right: Any) -> str:
    """How a wrong answer differs, without giving the right one away."""
    if not isinstance(answer, np.ndarray) or not isinstance(right, np.ndarray):
        wanted = "a number" if isinstance(right, np.ndarray) else f"a {type(right).__name__}"
        return "" if type(answer) is type(right) else f": it is a {type(answer).__name__}, and {wanted} is asked for"
    if answer.shape != right.shape:
        return f": its shape is {answer.shape}, and {right.shape} is asked for"
    if right.ndim:
        place = np.argwhere(~np.isclose(answer, right, rtol=1e-6, atol=0, equal_nan=True))
        where = ", ".join(map(str, place[0] if len(place) else []))
        return f": the first element that differs is [{where}], which is {answer[tuple(place[0])]:g}" if where else ""
    if not np.isfinite(answer) or right == 0:
        return f": {answer:g}"
    ratio = float(answer / right)
    if ratio < 0:
        return ": its sign is wrong"
    return f": {answer:.10g} is {ratio:.4g} times what it should be" if abs(ratio - 1) > 1e-3 else ": it is close"
