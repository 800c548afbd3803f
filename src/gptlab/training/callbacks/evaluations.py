"""What else is measured of the model in training, beside validation: `callbacks.evaluate`."""

from collections.abc import Callable, Iterable, Mapping
from itertools import count

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from gptlab.distributed.signals import Interrupted
from gptlab.evaluation.probes import PREFIX, Probe
from gptlab.training.callbacks.signals import SignalListener


class Evaluations:
    """Measures the probes that are due after a step.

    All ranks measure the same, since with a sharded model none can alone. Random state and the layers' modes are
    afterwards as they were.
    """

    def __init__(self, probes: Iterable[Probe], signals: SignalListener, *, n_steps: int):
        self.probes = list(probes)
        self.signals = signals
        self.n_steps = n_steps

    @property
    def columns(self) -> list[str]:
        return [column for probe in self.probes for column in probe.columns]

    def due(self, step: int, *, validated: bool) -> list[Probe]:
        """The probes of a step; `validated`: validation follows it too."""
        return [
            probe
            for probe in self.probes
            if (validated if probe.every_steps is None else step % probe.every_steps == 0) or step == self.n_steps
        ]

    def lacking(self, row: Mapping[str, float], *, validated: bool) -> list[Probe]:
        """The probes whose numbers a row of metrics.csv should have and has not, as the run was stopped before."""
        return [
            probe for probe in self.due(int(row["step"]), validated=validated) if not set(probe.columns) <= row.keys()
        ]

    def measure(self, trainer, module, probes: Iterable[Probe]) -> dict[str, float]:
        """The columns of these probes; a signal ends it, between two batches where there are other ranks."""
        found: dict[str, float] = {}
        modes = {part: part.training for part in module.model.modules()}
        module.model.eval()
        # Compiled blocks would be compiled again for shapes that training never has.
        eager = torch.compiler.set_stance("force_eager")

        def measure() -> None:
            with isolate_rng(), eager, torch.no_grad(), trainer.precision_plugin.forward_context():
                for probe in probes:
                    found.update(probe.measure(module.model, self._stop_points(probe, module.finished_steps)))

        try:
            module.interruptibly(measure)
        finally:
            for part, mode in modes.items():
                part.training = mode
        return found

    def _stop_points(self, probe: Probe, step: int) -> Callable[[], None]:
        """What a probe calls between two batches: all ranks leave it at the same one, by Interrupted."""
        indices = count()

        def between() -> None:
            signum = self.signals.before_evaluation_batch(f"{PREFIX}{probe.name}", step, next(indices), None)
            if signum:
                raise Interrupted(signum)

        return between
