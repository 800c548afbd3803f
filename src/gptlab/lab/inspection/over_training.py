"""Sizes of activations, gradients and weights by layer over training, where `callbacks.inspect` recorded them."""

from typing import Any

from gptlab.lab.inspection.subject import Subject
from gptlab.runs.folder import LAYERS_FILE, read_columns

N_STEPS = 200  # that are shown


def over_training(subject: Subject) -> dict[str, Any] | None:
    """The columns of the run's layers.csv by what they measure, each the values of a layer at `steps`."""
    columns = {} if subject.folder is None else read_columns(subject.folder / LAYERS_FILE)
    if not columns.get("step"):
        return None
    n = len(columns["step"])
    every = -(-n // N_STEPS)
    shown = [*range(0, n - 1, every), n - 1]
    kinds: dict[str, dict[str, list[float | None]]] = {}
    for column, values in columns.items():
        kind, _, layer = column.partition("/")
        if layer and any(value is not None for value in values):
            kinds.setdefault(kind, {})[layer] = [values[i] for i in shown]
    if not kinds:
        return None
    return {"steps": [columns["step"][i] for i in shown], "kinds": kinds}
