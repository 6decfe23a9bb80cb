"""What a figure was measured on: the machine, the versions, the toolchain's build."""

from __future__ import annotations

import platform
from typing import Any

from ggq import __version__, hardware
from ggq.llamacpp.toolchain import Toolchain


def environment(toolchain: Toolchain) -> dict[str, Any]:
    """The environment block of a manifest or a record; sizes in bytes."""
    machine = hardware.describe()
    return {
        "cpu": machine.cpu,
        "instruction_sets": list(machine.instruction_sets),
        "usable_cores": machine.usable_cores,
        "ram_total_bytes": machine.ram_total_bytes,
        "system": machine.system,
        "python": platform.python_version(),
        "ggq": __version__,
        "llama_cpp_commit": toolchain.commit,
        "llama_cpp_backends": list(toolchain.build.backends) if toolchain.build else None,
        "llama_cpp_flags": list(toolchain.build.cmake_flags) if toolchain.build else None,
    }
