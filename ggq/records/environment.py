"""What a figure was measured on: the machine, the versions, the toolchain's build."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import dataclass

from ggq._version import __version__
from ggq.errors import ToolFailed
from ggq.llamacpp import devices
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import codec, hardware, memory_sampler

# What makes a figure another one when it changes; versions of Python or of ggq do not.
_IDENTITY = ("cpu", "instruction_sets", "usable_cores", "ram_total_bytes", "gpus", "llama_cpp_commit",
             "llama_cpp_backends", "llama_cpp_flags")  # fmt: skip


@dataclass(frozen=True)
class EnvironmentGpu:
    """A GPU that llama.cpp sees: ggml's ``name`` (``CUDA0``), the maker's ``description``."""

    name: str
    description: str
    memory_total_bytes: int


@dataclass(frozen=True)
class Environment:
    """The environment block of a manifest or a record. ``gpus``: None where asking failed; the others are
    None where they are not known."""

    cpu: str
    usable_cores: int
    ram_total_bytes: int
    llama_cpp_commit: str | None
    instruction_sets: tuple[str, ...] | None = None
    gpus: tuple[EnvironmentGpu, ...] | None = None
    nvidia_driver: str | None = None
    system: str | None = None
    python: str | None = None
    ggq: str | None = None
    llama_cpp_backends: tuple[str, ...] | None = None
    llama_cpp_flags: tuple[str, ...] | None = None

    @property
    def id(self) -> str:
        """A short digest of the machine and the build."""
        known = codec.encode(self)
        identity = {name: known[name] for name in _IDENTITY}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """``AMD EPYC 9654, 8 cores, llama.cpp 0c1e57098``."""
        return f"{self.cpu}, {self.usable_cores} cores, llama.cpp {self.llama_cpp_commit}"


def environment(toolchain: Toolchain) -> Environment:
    """This machine and this build."""
    machine = hardware.describe()
    return Environment(
        cpu=machine.cpu,
        usable_cores=machine.usable_cores,
        ram_total_bytes=machine.ram_total_bytes,
        llama_cpp_commit=toolchain.commit,
        instruction_sets=tuple(machine.instruction_sets),
        gpus=_gpus(toolchain) if toolchain.may_see_gpus else (),
        nvidia_driver=memory_sampler.nvidia_driver(),
        system=machine.system,
        python=platform.python_version(),
        ggq=__version__,
        llama_cpp_backends=tuple(toolchain.build.backends) if toolchain.build else None,
        llama_cpp_flags=tuple(toolchain.build.cmake_flags) if toolchain.build else None,
    )


def now() -> str:
    """The time as records have it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _gpus(toolchain: Toolchain) -> tuple[EnvironmentGpu, ...] | None:
    """Name and memory of each GPU that llama.cpp sees; None where asking fails."""
    try:
        found = devices.gpus(toolchain)
    except ToolFailed:
        return None
    return tuple(EnvironmentGpu(gpu.name, gpu.description, gpu.memory_total_bytes) for gpu in found)
