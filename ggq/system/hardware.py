"""This machine as a program may use it: CPU, memory under control-group limits, disks, GPUs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ggq import units
from ggq.system import cgroup, files

# What llama.cpp's kernels are written for, as the kernel spells it (x86, then Arm).
_INSTRUCTION_SETS = (
    "pni", "ssse3", "sse4_2", "avx", "avx2", "f16c", "fma", "bmi2", "avx_vnni", "avx512f", "avx512bw",
    "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class DeviceKind(StrEnum):
    """``IGPU`` shares the machine's memory; ``RPC`` is of a server, perhaps on another machine."""

    GPU = "gpu"
    IGPU = "igpu"
    RPC = "rpc"


@dataclass(frozen=True)
class Device:
    """What ggml can compute on beside the CPU. ``name`` is ggml's (``CUDA0``, ``RPC0``), ``description`` the
    maker's, or the server's address."""

    name: str
    description: str
    kind: DeviceKind
    memory_total_bytes: int
    memory_free_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.description})"

    @property
    def shares_ram(self) -> bool:
        """Whether it has no memory of its own: an integrated one, or Apple's, which ggml calls a GPU."""
        return self.kind is DeviceKind.IGPU or self.name.startswith("MTL")


@dataclass(frozen=True)
class Disk:
    """What this user may still write in the folder that plays ``role``."""

    role: str
    folder: Path
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """``usable_cores`` and the RAM respect affinity and control groups; ``physical_cores`` is None where
    the system does not tell; ``host_ram_bytes`` is the whole machine's."""

    system: str
    architecture: str
    cpu: str
    instruction_sets: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int
    usable_cores: int
    host_ram_bytes: int
    ram_total_bytes: int
    ram_available_bytes: int
    disks: tuple[Disk, ...]
    gpus: tuple[Device, ...]


def describe(
    *,
    folders: Mapping[str, Path] | None = None,
    gpus: Sequence[Device] = (),
    limits: cgroup.Limits | None = None,
) -> Machine:
    """This machine now.

    ``folders``: the places whose free disk is wanted, by role; ``gpus``: from ggq.llamacpp.devices, since
    llama.cpp is not known here; ``limits``: for tests.
    """
    import psutil

    limits = limits or cgroup.limits()
    memory = psutil.virtual_memory()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=cpu_name(),
        instruction_sets=instruction_sets(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=usable_cores(limits),
        host_ram_bytes=memory.total,
        ram_total_bytes=_least(memory.total, limits.memory_bytes),
        ram_available_bytes=available_ram_bytes(limits),
        disks=tuple(Disk(role, folder, files.free_bytes(folder)) for role, folder in (folders or {}).items()),
        gpus=tuple(gpus),
    )


def available_ram_bytes(limits: cgroup.Limits | None = None) -> int:
    """What programs may still take, under control-group limits."""
    import psutil

    limits = limits or cgroup.limits()
    return _least(int(psutil.virtual_memory().available), limits.memory_available_bytes)


def total_ram_bytes(limits: cgroup.Limits | None = None) -> int:
    """What programs may take in all, under control-group limits."""
    import psutil

    return _least(int(psutil.virtual_memory().total), (limits or cgroup.limits()).memory_bytes)


def usable_cores(limits: cgroup.Limits | None = None) -> int:
    """How many threads can run at once: the affinity mask under the control group's quota, at least 1.

    A quota's fraction is dropped: ggml's threads wait for one another, and a throttled one holds up all.
    """
    limits = limits or cgroup.limits()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return allowed if limits.cpu_cores is None else max(1, min(allowed, math.floor(limits.cpu_cores)))


def last_cache_bytes() -> int | None:
    """Size of the CPU's largest cache, or None where the system does not tell."""
    sizes = []
    for file in _CACHES.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(units.parse_bytes(file.read_text(encoding="ascii").strip() + "iB"))
    return max(sizes, default=None)


def power_state() -> str:
    """``mains`` (also without a battery) or ``battery``, and the governor of the CPU's clock if any."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    words = ["battery" if battery is not None and battery.power_plugged is False else "mains"]
    with contextlib.suppress(OSError):
        words.append(_GOVERNOR.read_text(encoding="ascii").strip())
    return " ".join(words)


def cpu_name() -> str:
    """The processor's name, as its maker has it."""
    return str(_cpu()["brand_raw"])


def instruction_sets() -> tuple[str, ...]:
    """Those of the CPU's instruction sets that llama.cpp has code for; empty where the system is silent."""
    flags = set(_cpu().get("flags", ()))
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


@functools.cache
def _cpu() -> dict[str, Any]:
    """Name and flags, as Linux on x86 has them at hand; elsewhere py-cpuinfo asks around for a second."""
    with contextlib.suppress(OSError, KeyError):
        pairs = (line.partition(":") for line in _CPUINFO.read_text(encoding="utf-8").splitlines())
        said = {key.strip(): value.strip() for key, _, value in pairs}
        return {"brand_raw": said["model name"], "flags": said["flags"].split()}
    import cpuinfo

    found: dict[str, Any] = cpuinfo.get_cpu_info()
    found.setdefault("brand_raw", platform.processor() or platform.machine())
    return found


def _least(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)
