"""Kinds of devices: their peak FLOP/s, memory and power, from hardware.yaml."""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import yaml

from gptlab.errors import UserError, did_you_mean

# Where a precision of training is computed. The table has no peak of fp8: beside float8 such a run computes in bfloat16
# (attention, the head), and an MFU of either peak would not compare with that of other runs.
COMPUTED_IN = {
    "32-true": "fp32",
    "16-mixed": "fp16",
    "16-true": "fp16",
    "bf16-mixed": "bf16",
    "bf16-true": "bf16",
    "fp8-mixed": "fp8",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of device."""

    name: str
    peak: dict[str, float] = field(default_factory=dict)  # dense FLOP/s by number format
    memory_bytes: int | None = None
    watts: float | None = None
    match: str | None = None  # what CUDA's name of it contains
    capability: tuple[int, int] | None = None  # CUDA's compute capability

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def peak_flops(self, precision: str) -> float | None:
        """FLOP/s in a precision of training; None where it is not known."""
        return self.peak.get(COMPUTED_IN[precision])

    @property
    def precision(self) -> str:
        """The precision that training has on it unless one is set."""
        return "bf16-mixed" if "bf16" in self.peak and not self.is_cpu else "32-true"


@cache
def known() -> dict[str, Hardware]:
    """All kinds by name."""
    text = files("gptlab.distributed").joinpath("hardware.yaml").read_text(encoding="utf-8")
    return {name: _hardware(name, **about) for name, about in yaml.safe_load(text).items()}


def _hardware(
    name: str,
    peak: dict,
    memory_gb: float | None = None,
    watts: float | None = None,
    match: str | None = None,
    capability: list[int] | None = None,
) -> Hardware:
    memory = None if memory_gb is None else round(memory_gb * 1e9)
    version = None if capability is None else (capability[0], capability[1])
    return Hardware(name, {kind: float(value) for kind, value in peak.items()}, memory, watts, match, version)


def find(name: str) -> Hardware:
    """A kind of device by its name; UserError for one that is not in the table."""
    if name not in known():
        raise UserError(
            f"device={name} is not in the table{did_you_mean(name, known())}; describe one of your own with its dense "
            f"TFLOP/s, GB and watts: device={name} peak_tflops=100 memory_gb=24 watts=250"
        )
    return known()[name]


def of_cuda(cuda_name: str) -> Hardware | None:
    """The kind of a GPU that is there; None where the table has none."""
    kinds = (kind for kind in known().values() if kind.match)
    return next((kind for kind in kinds if re.search(rf"\b{kind.match}\b", cuda_name)), None)
