"""The machine as a program may use it: affinity, control groups of both versions, disks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from ggq.system import cgroup, hardware
from ggq.system.cgroup import Limits

GIB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712"


@dataclass(frozen=True)
class Case:
    """``files``: of a control-group file system, by path; ``membership``: /proc/self/cgroup."""

    membership: str
    files: dict[str, str]
    limits: Limits = field(default_factory=Limits)


CASES = {
    "none": Case("", {}),
    "v2 without limits": Case(
        "0::/user.slice\n",
        {
            "user.slice/cpu.max": "max 100000",
            "user.slice/memory.max": "max",
            "user.slice/memory.current": "5",
        },
    ),
    "v2 in a container that sees only itself": Case(
        "0::/\n",
        {
            "cpu.max": "150000 100000",
            "memory.max": str(4 * GIB),
            "memory.current": str(3 * GIB),
            "memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\n",
        },
        Limits(1.5, 4 * GIB, 5 * GIB // 2),
    ),
    "v2 in a container that is named as the host sees it": Case(
        "0::/docker/0123abcd\n",
        {"memory.max": str(GIB), "memory.current": "0", "memory.stat": ""},
        Limits(None, GIB, GIB),
    ),
    "v2 where a group above is tighter": Case(
        "0::/a/b\n",
        {
            "a/cpu.max": "200000 100000",
            "a/memory.max": str(2 * GIB),
            "a/memory.current": str(2 * GIB),
            "a/memory.stat": "inactive_file 0\nactive_file 0",
            "a/b/cpu.max": "800000 100000",
            "a/b/memory.max": str(8 * GIB),
            "a/b/memory.current": str(GIB),
            "a/b/memory.stat": "",
        },
        Limits(2.0, 2 * GIB, 0),
    ),
    "v1 without limits": Case(
        "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
        {
            "memory/job/memory.limit_in_bytes": NO_LIMIT_V1,
            "cpu/job/cpu.cfs_quota_us": "-1",
            "cpu/job/cpu.cfs_period_us": "100000",
        },
    ),
    "v1 with limits": Case(
        "4:memory:/job/one\n3:cpu,cpuacct:/job\n",
        {
            "memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "memory/job/memory.limit_in_bytes": str(3 * GIB),
            "memory/job/memory.usage_in_bytes": str(2 * GIB),
            "memory/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0\n",
            "memory/job/one/memory.limit_in_bytes": NO_LIMIT_V1,
            "cpu/job/cpu.cfs_quota_us": "400000",
            "cpu/job/cpu.cfs_period_us": "100000",
        },
        Limits(4.0, 3 * GIB, 2 * GIB),
    ),
    "v1 and v2 side by side": Case(
        "5:memory:/m\n0::/u\n",
        {
            "memory/m/memory.limit_in_bytes": str(GIB),
            "memory/m/memory.usage_in_bytes": "0",
            "unified/u/cpu.max": "100000 100000",
        },
        Limits(1.0, GIB, GIB),
    ),
    "files that make no sense": Case(
        "0::/\nnonsense\n", {"cpu.max": "many", "memory.max": "lots", "memory.current": "-"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_control_groups(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    membership = tmp_path / "membership"
    membership.write_text(case.membership)
    for path, content in case.files.items():
        file = tmp_path / "cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert cgroup.limits(tmp_path / "cgroup", membership) == case.limits


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert cgroup.limits(tmp_path / "absent", tmp_path / "absent") == Limits()


def test_usable_cores_follow_affinity_and_quota() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert hardware.usable_cores(Limits()) == allowed
    assert hardware.usable_cores(Limits(cpu_cores=1.9)) == 1
    assert hardware.usable_cores(Limits(cpu_cores=0.3)) == 1
    assert hardware.usable_cores(Limits(cpu_cores=10_000)) == allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot set an affinity")
def test_one_core_is_one_core() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.usable_cores(Limits()) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine(tmp_path: Path) -> None:
    gpu = hardware.Device("CUDA0", "A GPU", hardware.DeviceKind.GPU, 2 * GIB, GIB)
    machine = hardware.describe(folders={"here": tmp_path}, gpus=[gpu])
    assert machine.cpu and machine.system and machine.architecture
    assert 1 <= machine.usable_cores <= machine.logical_cores
    assert 0 < machine.ram_available_bytes <= machine.ram_total_bytes <= machine.host_ram_bytes
    assert machine.host_ram_bytes == psutil.virtual_memory().total
    assert [(disk.role, disk.folder) for disk in machine.disks] == [("here", tmp_path)]
    assert machine.disks[0].free_bytes > 0
    assert machine.gpus == (gpu,)
    if machine.architecture == "x86_64":
        assert "ssse3" in machine.instruction_sets


def test_memory_under_a_limit() -> None:
    machine = hardware.describe(limits=Limits(1.0, 100_000_000, 60_000_000))
    assert (machine.ram_total_bytes, machine.ram_available_bytes) == (100_000_000, 60_000_000)
    assert machine.host_ram_bytes > 100_000_000
    assert machine.usable_cores == 1
