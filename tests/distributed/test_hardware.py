import pytest

from gptlab.distributed import hardware
from gptlab.errors import UserError


@pytest.mark.parametrize(
    ("cuda_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_kinds_by_the_names_that_cuda_gives(cuda_name, name):
    found = hardware.of_cuda(cuda_name)
    assert (found and found.name) == name


def test_every_kind_is_complete():
    for kind in hardware.known().values():
        assert kind.is_cpu or (kind.memory_bytes and kind.watts and kind.match and {"fp16"} <= kind.peak.keys())
        assert all(1e12 < peak < 1e16 for peak in kind.peak.values())


def test_the_precision_of_a_kind():
    assert hardware.find("h100").precision == "bf16-mixed" and hardware.find("h100").peak_flops("bf16-true") == 989e12
    assert hardware.find("v100").precision == "32-true" and hardware.find("v100").peak_flops("bf16-mixed") is None
    assert hardware.find("cpu").precision == "32-true"


def test_an_unknown_kind():
    with pytest.raises(UserError, match=r"device=h10 .*did you mean h100.*peak_tflops="):
        hardware.find("h10")
