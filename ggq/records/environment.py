"""What a figure was measured on: the machine, the versions, the toolchain's build."""

from __future__ import annotations

import platform
from typing import Any

from ggq._version import __version__
from ggq.errors import ToolFailed
from ggq.llamacpp import devices
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import hardware, memory_sampler


def environment(toolchain: Toolchain) -> dict[str, Any]:
    """The environment block of a manifest or a record; sizes in bytes."""
    machine = hardware.describe()
    backends = list(toolchain.build.backends) if toolchain.build else None
    return {
        "cpu": machine.cpu,
        "instruction_sets": list(machine.instruction_sets),
        "usable_cores": machine.usable_cores,
        "ram_total_bytes": machine.ram_total_bytes,
        "gpus": _gpus(toolchain) if toolchain.may_see_gpus else [],
        "nvidia_driver": memory_sampler.nvidia_driver(),
        "system": machine.system,
        "python": platform.python_version(),
        "ggq": __version__,
        "llama_cpp_commit": toolchain.commit,
        "llama_cpp_backends": backends,
        "llama_cpp_flags": list(toolchain.build.cmake_flags) if toolchain.build else None,
    }


def _gpus(toolchain: Toolchain) -> list[dict[str, Any]] | None:
    """Name and memory of each GPU that llama.cpp sees; None where asking fails."""
    try:
        found = devices.gpus(toolchain)
    except ToolFailed:
        return None
    return [
        {"name": gpu.name, "description": gpu.description, "memory_total_bytes": gpu.memory_total_bytes}
        for gpu in found
    ]
