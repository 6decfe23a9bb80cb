"""What a preset will need in memory, before there is a file of it: llama.cpp's account of a hollow one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggq import hardware
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import ROUNDING_BYTES, Load
from ggq.llamacpp.toolchain import Toolchain

# What a process that computes holds beside one that only foretells: stacks, logits, its own code. Seen: 3 MiB
# of llama-bench (make bench-foresight).
_RUNNING_BYTES = 6 << 20


@dataclass(frozen=True)
class DeviceForecast:
    """Bytes of llama.cpp's buffers on a device (``CUDA0``), and what is free there now (None: not told)."""

    name: str
    needed_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class MemoryForecast:
    """Memory at one context and type of cache, with that context filled.

    ``buffers_bytes``: weights, cache and buffers of the CPU, from above (a few MiB); with mmap the system can
    take the weights' part back, at the price of reading them again. ``repacked_bytes`` of them are weights in
    another order: with mmap these are in memory a second time, as pages of the file. ``process_bytes``: the
    process itself. ``ram_free_bytes``: available now. ``devices``: the part on GPUs.
    """

    context_tokens: int
    type_k: str
    type_v: str
    buffers_bytes: int
    repacked_bytes: int
    process_bytes: int
    ram_free_bytes: int
    devices: tuple[DeviceForecast, ...]

    @property
    def ram_bytes(self) -> int:
        return self.buffers_bytes + self.process_bytes

    def resident_bytes(self, load_mode: str) -> int:
        """RAM that the process is seen to hold, pages of the mapped file included."""
        return self.ram_bytes + (self.repacked_bytes if load_mode == "mmap" else 0)

    @property
    def missing_bytes(self) -> int:
        """How much is missing where most is; 0: it fits."""
        short = [self.ram_bytes - self.ram_free_bytes]
        for device in self.devices:
            if device.needed_bytes and device.free_bytes is not None:
                short.append(device.needed_bytes + ROUNDING_BYTES - device.free_bytes)
        return max(0, *short)


def forecast(toolchain: Toolchain, model: Path, load: Load) -> MemoryForecast:
    """Ask llama.cpp what ``model``, hollow or not, would take.

    Raises GgufProblem when it refuses (a context or cache that the model cannot have), ToolchainProblem.
    """
    found = llama_memory.breakdown(toolchain, model, load)
    return MemoryForecast(
        context_tokens=load.context_tokens,
        type_k=load.type_k,
        type_v=load.type_v,
        buffers_bytes=sum(row.sum_bytes + ROUNDING_BYTES for row in found.host),
        repacked_bytes=sum(row.model_bytes for row in found.host if row.kind == "buffer_type"),
        process_bytes=(found.process_bytes or 0) + _RUNNING_BYTES,
        ram_free_bytes=hardware.available_ram_bytes(),
        devices=tuple(
            # A device that does not know its memory says 0.
            DeviceForecast(row.name, row.sum_bytes, row.device_free_bytes or None)
            for row in found.devices
        ),
    )
