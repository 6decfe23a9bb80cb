"""What a preset will need in memory, before there is a file of it: llama.cpp's account of a hollow one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.gguf import file as gguf_file
from ggq.gguf.file import EMBEDDINGS, OUTPUT
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import ROUNDING_BYTES, Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import hardware

# What a process that computes holds beside one that only predicts: stacks, logits, its own code. Seen: 3 MiB
# of llama-bench (make bench-foresight).
_RUNNING_BYTES = 6 << 20


@dataclass(frozen=True)
class DevicePrediction:
    """Bytes of llama.cpp's buffers on a device (``CUDA0``), and what is free there now (None: not told).
    ``shares_ram``: it has no memory of its own."""

    name: str
    needed_bytes: int
    free_bytes: int | None
    shares_ram: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory at one context and type of cache, with that context filled.

    ``weights_bytes``, ``cache_bytes`` and ``compute_bytes``: buffers of the CPU, each from above (a MiB or
    two); with mmap the system can take the weights back, at the price of reading them again.
    ``repacked_bytes`` of the weights are in another order: with mmap these are in memory a second time, as
    pages of the file. ``staging_bytes``: a tensor on its way elsewhere, in memory beside the weights until
    all are loaded. ``process_bytes``: the process itself. ``ram_free_bytes``: available now. ``devices``: the
    part on GPUs.
    """

    context_tokens: int
    type_k: str
    type_v: str
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    repacked_bytes: int
    staging_bytes: int
    process_bytes: int
    ram_free_bytes: int
    devices: tuple[DevicePrediction, ...]

    @property
    def ram_bytes(self) -> int:
        """The most at any time: while it runs or, with little else on the CPU, while it is loaded."""
        more = max(self.cache_bytes + self.compute_bytes, self.staging_bytes)
        return self.process_bytes + self.weights_bytes + more

    def resident_bytes(self, load_mode: str) -> int:
        """RAM that the process is seen to hold, pages of the mapped file included."""
        return self.ram_bytes + (self.repacked_bytes if load_mode == "mmap" else 0)

    @property
    def missing_bytes(self) -> int:
        """How much is missing where most is; 0: it fits."""
        return max(0, *(needed - free for _, needed, free in self._places()))

    @property
    def tightest(self) -> tuple[str, int]:
        """Where most is missing, or least is left (``RAM``, ``CUDA0``), and the bytes that it takes there."""
        where, needed_bytes, _ = max(self._places(), key=lambda place: place[1] - place[2])
        return where, needed_bytes

    def _places(self) -> Iterator[tuple[str, int, int]]:
        """Each memory with what is needed and what is free of it. What devices share with the CPU counts
        there, too."""
        shared = [
            it.needed_bytes + ROUNDING_BYTES for it in self.devices if it.shares_ram and it.needed_bytes
        ]
        yield "RAM", self.ram_bytes + sum(shared), self.ram_free_bytes
        for device in self.devices:
            if device.needed_bytes and device.free_bytes is not None:
                yield device.name, device.needed_bytes + ROUNDING_BYTES, device.free_bytes


def estimate(toolchain: Toolchain, model: Path, load: Load) -> MemoryEstimate:
    """Ask llama.cpp what ``model``, hollow or not, would take.

    Raises GgufProblem when it refuses (a context or cache that the model cannot have), ToolchainProblem.
    """
    found = llama_memory.breakdown(toolchain, model, load)

    def from_above(part: str) -> int:
        return sum(getattr(row, part) + ROUNDING_BYTES // 3 for row in found.host)

    repacked_bytes = sum(row.model_bytes for row in found.host if row.kind == "buffer_type")
    elsewhere = repacked_bytes or any(row.model_bytes for row in found.devices)
    return MemoryEstimate(
        context_tokens=load.context_tokens,
        type_k=load.type_k,
        type_v=load.type_v,
        weights_bytes=from_above("model_bytes"),
        cache_bytes=from_above("context_bytes"),
        compute_bytes=from_above("compute_bytes"),
        repacked_bytes=repacked_bytes,
        staging_bytes=_largest_bytes(model, bool(found.devices)) if elsewhere else 0,
        process_bytes=(found.process_bytes or 0) + _RUNNING_BYTES,
        ram_free_bytes=hardware.available_ram_bytes(),
        devices=tuple(
            # A device that does not know its memory says 0.
            DevicePrediction(row.name, row.sum_bytes, row.device_free_bytes or None)
            for row in found.devices
        ),
    )


def _largest_bytes(model: Path, on_devices: bool) -> int:
    """The largest tensor that leaves the CPU's plain memory, where llama_model_loader::load_all_data has read
    it first. The embeddings stay there; where they are the output matrix as well, devices get a copy."""
    sizes = {tensor.name: tensor.data_bytes for tensor in gguf_file.read_all(model).tensors}
    if not (on_devices and OUTPUT not in sizes):
        sizes.pop(EMBEDDINGS, None)
    return max(sizes.values(), default=0)


def touched(memory: MemoryEstimate, narrow_bytes: int, vocabulary_tokens: int) -> MemoryEstimate:
    """``memory`` without what is reserved and not used: room for the logits of a whole batch, of which
    llama.cpp, asked for the next token, computes the last row only.

    ``narrow_bytes``: room for computing in the same load of the same model with hardly any vocabulary. Memory
    of a device is taken whether it is used or not, and stays as it is.
    """
    used_bytes = narrow_bytes + 4 * vocabulary_tokens  # float32
    return replace(memory, compute_bytes=min(memory.compute_bytes, used_bytes))
