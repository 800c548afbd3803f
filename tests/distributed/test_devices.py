"""The memory that is free: of the system, and of the control groups of a container or a batch system."""

import pytest

from gptlab.distributed import devices


@pytest.mark.parametrize("version", [1, 2])
def test_the_free_memory_of_control_groups(tmp_path, version):
    root, names = tmp_path / "groups", ("memory.max", "memory.current", "inactive_file")
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n" if version == 2 else "5:cpu,cpuacct:/\n4:memory:/job/step\n")
    if version == 1:
        root, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, limit in ((root / "job", 1000), (root / "job" / "step", "max" if version == 2 else 2**63 - 4096)):
        folder.mkdir(parents=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("700\n")
        (folder / "memory.stat").write_text(f"anon 500\n{names[2]} 200\n")
    assert min(devices._free_in_groups(tmp_path / "groups", own)) == 500  # of the group above
    assert devices._free_in_groups(tmp_path / "groups", tmp_path / "none") == []


def test_the_free_memory_of_a_system(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000 kB\nMemAvailable:    3000 kB\n")
    assert devices._free_in_system(meminfo) == [3000 * 1024]
    assert devices._free_in_system(tmp_path / "none") == []


def test_processes_on_a_machine_share_its_memory():
    one, four = (devices.free_memory_bytes(devices.Devices("cpu", n, n, "32-true", None)) for n in (1, 4))
    assert one is not None and four is not None and 3 * four < one < 5 * four
