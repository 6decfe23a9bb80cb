"""The limits of Linux control groups (v1 and v2): what a container or a batch job may really use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # v1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Limits:
    """``cpu_cores``: quota in cores (1.5 = one and a half); ``memory_bytes``: the tightest limit;
    ``memory_available_bytes``: what is left below it. None: no limit."""

    cpu_cores: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None


def limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Limits:
    """The limits of this process: those of its group and of every group above it, the tightest of each.

    ``root`` is where the controllers are mounted, ``membership`` the kernel's list of this process's groups
    (cgroups(7)). Where there are no control groups there are no limits.
    """
    cores: list[float] = []
    memory: list[int] = []
    available: list[int] = []
    for controllers, group in _memberships(membership):
        for folder in _folders(root, controllers, group):
            quota = _cpu_quota(folder)
            if quota is not None:
                cores.append(quota)
            limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
            if limit is not None and limit < _UNLIMITED_BYTES:
                memory.append(limit)
                available.append(max(0, limit - _memory_in_use(folder)))
    return Limits(min(cores, default=None), min(memory, default=None), min(available, default=None))


def _memberships(file: Path) -> Iterator[tuple[list[str], str]]:
    """``4:cpu,cpuacct:/group`` -> (["cpu", "cpuacct"], "/group"); v2's ``0::/group`` -> ([], "/group")."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        yield [name for name in controllers.split(",") if name], group


def _folders(root: Path, controllers: list[str], group: str) -> Iterator[Path]:
    """The group's folder and those above it, as far as they can be seen from here.

    Inside a container the group may be named as the host sees it while only its own folder is mounted, at
    the root; the walk upwards ends there, so its limits are found all the same.
    """
    if controllers:
        mounts = [root / name for name in controllers if name in ("cpu", "memory")]
    else:
        mounts = [root / "unified", root]
    for mount in mounts:
        folder = mount / group.strip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(mount))


def _cpu_quota(folder: Path) -> float | None:
    """Cores: v2's ``cpu.max`` is "quota period" or "max period"; v1 has a file for each, -1 = no quota."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _memory_in_use(folder: Path) -> int:
    """Bytes that the kernel cannot simply take back: usage less the page cache of files."""
    usage = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    # v1 counts a group's children only in the lines that begin with total_.
    prefix = "total_" if "total_inactive_file" in stat else ""
    cache = sum(int(stat.get(prefix + name, 0)) for name in ("inactive_file", "active_file"))
    return max(0, usage - cache)


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
