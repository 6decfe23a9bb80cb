"""The most of a model that fits the GPUs: llama.cpp proposes a placement, its account of it is the proof."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ggq.estimation.memory import MemoryEstimate, estimate
from ggq.gguf import file as gguf_file
from ggq.gguf.file import EMBEDDINGS, OUTPUT, GgufFile
from ggq.llamacpp import fit_params
from ggq.llamacpp.memory import ROUNDING_BYTES, Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain

# So often layers are spread again over several devices before a number of them is given up.
_SPLITS = 3

_BLOCK = re.compile(r"blk\.(\d+)\.")
# As common.h has it (LLM_FFN_EXPS_REGEX).
_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")


@dataclass(frozen=True)
class Room:
    """Memory in bytes, of the CPU and by device (``CUDA0``): what may be used, or what something takes.

    A device that is not named has no room. What is free on a GPU is llama.cpp's word (``bench.devices``):
    its process has a context there already, which takes hundreds of MB, when it asks.
    """

    ram_bytes: int
    vram_bytes: Mapping[str, int] = field(default_factory=dict)

    def less(self, taken: Room) -> Room:
        """What is left beside something else, as a draft model; less than nothing where it does not fit."""
        left = {name: room - taken.vram_bytes.get(name, 0) for name, room in self.vram_bytes.items()}
        return Room(self.ram_bytes - taken.ram_bytes, left)


@dataclass(frozen=True)
class Placement:
    """Where a model goes, and ``memory``: llama.cpp's account of that very placement.

    ``layer_count``: layers that there are, the output layer counted. ``missing_ram_bytes``: so much less RAM
    than it needs is there; 0: it fits. No device gets more than it has room for.
    """

    offload: Offload
    memory: MemoryEstimate
    layer_count: int
    missing_ram_bytes: int

    @property
    def fits(self) -> bool:
        return self.missing_ram_bytes == 0

    @property
    def is_whole(self) -> bool:
        """Everything that llama.cpp can put on devices is there: it leaves the embeddings to the CPU."""
        return self.offload.n_gpu_layers == self.layer_count and self.offload.n_cpu_moe == 0

    @property
    def taken(self) -> Room:
        """What the model takes, at most: to be left out of the room of another."""
        return Room(self.memory.ram_bytes, _taken(self.offload, self.memory))


def most_layers(toolchain: Toolchain, model: Path, load: Load, room: Room) -> Placement:
    """Place as many layers of ``model``, hollow or not, on the devices as ``room`` allows.

    Of a mixture of experts first all layers, with as few as possible whose experts stay on the CPU
    (``n_cpu_moe``); if not even the rest of all layers fits, fewer layers. Over several devices layers are
    spread so that each is filled alike; the split is layers per device. ``load.offload`` says which RPC
    servers count as devices; an ``n_cpu_moe`` or ``tensor_split`` in it is kept, its ``n_gpu_layers`` is not
    looked at.

    The answer fits, and one layer more (experts of one layer more) does not, by llama.cpp's account without
    loading weights. It is found by asking llama.cpp's fit, then trying its neighbours: 1 question to
    llama.cpp where all fits, else mostly 4; over several devices about twice as many. A draft model is
    placed first, and what it takes is left out: ``room.less(draft.taken)``; likewise ``projector_room``.

    Raises GgufProblem when llama.cpp refuses the model or the load, ToolchainProblem.
    """
    search = _Search(toolchain, model, load, room)
    offload = search.best()
    memory = search.memory(offload)
    return Placement(
        offload=offload,
        memory=memory,
        layer_count=search.layers.count,
        missing_ram_bytes=max(0, memory.ram_bytes - room.ram_bytes),
    )


def projector_room(toolchain: Toolchain, projector: Path, room: Room, rpc: Sequence[str] = ()) -> Room:
    """What a projector (``mmproj``) takes: on the first device, or, where that has too little room, in RAM;
    then no device is named, and llama.cpp wants ``--no-mmproj-offload``.

    It is llama.cpp's own estimate for an image of the size that it warms up with; models that take pictures
    of any size can need more for larger ones. Raises as ``fit.projector_bytes``.
    """
    for offload in (True, False):
        taken = fit_params.projector_bytes(toolchain, projector, rpc, offload=offload)
        ram_bytes = taken.pop("CPU", 0)
        if all(taken[name] <= room.vram_bytes.get(name, 0) for name in taken):
            break
    return Room(ram_bytes, taken)


def _taken(offload: Offload, memory: MemoryEstimate) -> dict[str, int]:
    """Bytes by device, rounded up. Where a split puts no layers, there is nothing to be rounded."""
    shares = (*(offload.tensor_split or (1.0,)), *(0.0 for _ in memory.devices))
    return {
        device.name: device.needed_bytes + ROUNDING_BYTES
        for device, share in zip(memory.devices, shares, strict=False)
        if share or device.needed_bytes
    }


class _Search:
    """Along a ladder of placements, each lighter for the devices than the one before: the first that fits.

    That each is lighter is not quite so of the first two: with all layers on devices the buffers for
    computing can be smaller. So the first is always tried.
    """

    def __init__(self, toolchain: Toolchain, model: Path, load: Load, room: Room) -> None:
        self._toolchain = toolchain
        self._model = model
        self._load = load
        self._room = room
        self._told: dict[Offload, MemoryEstimate] = {}
        self.layers = _Layers(gguf_file.read_all(model))
        blocks, asked = self.layers.count - 1, load.offload
        kept = range(blocks + 1) if self.layers.have_experts and not asked.n_cpu_moe else (asked.n_cpu_moe,)
        # Layers on devices, and layers whose experts stay on the CPU.
        self._ladder = [(self.layers.count, it) for it in kept]
        self._elbow = len(self._ladder) - 1
        self._ladder += [(layers, kept[-1]) for layers in range(blocks, 0, -1)]

    def memory(self, offload: Offload) -> MemoryEstimate:
        if offload not in self._told:
            self._told[offload] = estimate(self._toolchain, self._model, replace(self._load, offload=offload))
        return self._told[offload]

    def best(self) -> Offload:
        """The first placement of the ladder that fits; the CPU alone always does."""
        best = replace(self._load.offload, n_gpu_layers=0)
        if max(self._room.vram_bytes.values(), default=0) <= 0:
            return best
        everything = self.memory(replace(self._load.offload, n_gpu_layers=self.layers.count))
        room = [max(0, self._room.vram_bytes.get(device.name, 0)) for device in everything.devices]
        if not any(room):
            return best
        whole, heavy_over = self._place(0, _Spread(room))
        if heavy_over <= 0:
            return whole
        spread = _Spread(room)  # again: with fewer layers there are other buffers beside them
        heavy, light, light_over = 0, len(self._ladder), -sum(room)
        rung = self._proposal(everything) or self._elbow
        fits: bool | None = None
        while light - heavy > 1:
            if not rung:
                # Needs grow evenly, mostly.
                rung = heavy + (light - heavy) * heavy_over // (heavy_over - light_over)
            rung = min(max(rung, heavy + 1), light - 1)
            offload, over = self._place(rung, spread)
            same_again = fits == (over <= 0)
            fits = over <= 0
            if fits:
                best, light, light_over = offload, rung, over
            else:
                heavy, heavy_over = rung, over
            # Where they do not, halves are quicker.
            rung = (heavy + light) // 2 if same_again else 0
        return best

    def _proposal(self, everything: MemoryEstimate) -> int:
        """The rung that llama.cpp's fit would take; 0 when it cannot be asked, or has no such answer."""
        margins = [
            (device.free_bytes or 0) - self._room.vram_bytes.get(device.name, 0) + ROUNDING_BYTES
            for device in everything.devices
        ]
        asked = self._load.offload
        # It is told what to leave of what is free, and sets all numbers itself.
        if min(margins) < 0 or asked.tensor_split or asked.n_cpu_moe:
            return 0
        found = fit_params.propose(self._toolchain, self._model, self._load, margins)
        if found is None:
            return 0
        if found.n_gpu_layers < 0:
            return 1  # all, which is known to be too much by our count
        if self.layers.have_experts:
            # With fewer than all layers it has not tried to leave all experts. The last of those whose
            # experts it leaves is the output layer, which has none.
            return max(1, found.kept_layers - 1) if found.n_gpu_layers == self.layers.count else 0
        return self.layers.count - found.n_gpu_layers

    def _place(self, rung: int, spread: _Spread) -> tuple[Offload, int]:
        """The placement of a rung, and by how many bytes it is over the room of a device; up to 0 it fits."""
        layers, kept = self._ladder[rung]
        asked = replace(self._load.offload, n_gpu_layers=layers, n_cpu_moe=kept)
        if spread.device_count == 1 or asked.tensor_split:
            return asked, self._over_bytes(asked)
        sizes = self.layers.sizes_bytes(layers, kept)
        tried: dict[Offload, int] = {}
        # The account of a split tells how to make a better one.
        for _ in range(_SPLITS):
            counts = spread.counts(sizes)
            split = replace(asked, tensor_split=tuple(map(float, counts)))
            if split in tried:
                break
            tried[split] = self._over_bytes(split)
            if tried[split] <= 0:
                break
            spread.learn(sizes, counts, [device.needed_bytes for device in self.memory(split).devices])
        best = min(tried, key=tried.__getitem__)
        return best, tried[best]

    def _over_bytes(self, offload: Offload) -> int:
        taken = _taken(offload, self.memory(offload))
        return max(it - self._room.vram_bytes.get(name, 0) for name, it in taken.items())


class _Spread:
    """Layers over several devices: at first alike, as llama.cpp does; then, as its fit does, each device is
    filled up, the last one first. The output layer is at the end, and the first device gets the rest."""

    def __init__(self, room_bytes: Sequence[int]) -> None:
        self.device_count = len(room_bytes)
        self._room = room_bytes
        # What each device needs beside the weights of its layers.
        self._beside: list[int] | None = None

    def counts(self, sizes_bytes: Sequence[int]) -> list[int]:
        """Layers per device."""
        if self._beside is None:
            share = sum(sizes_bytes) / sum(self._room)
            left = [share * room for room in self._room]
        else:
            left = [room - ROUNDING_BYTES - it for room, it in zip(self._room, self._beside, strict=True)]
        counts = [0] * self.device_count
        device = self.device_count - 1
        for size in reversed(sizes_bytes):
            while device and size > left[device]:
                device -= 1
            left[device] -= size
            counts[device] += 1
        return counts

    def learn(self, sizes_bytes: Sequence[int], counts: Sequence[int], needed_bytes: Sequence[int]) -> None:
        """Take in llama.cpp's account of a split."""
        beside = self._beside or [0] * self.device_count
        sizes = iter(sizes_bytes)
        weights = [sum(islice(sizes, count)) for count in counts]
        self._beside = [
            needed - weight if count else before
            for needed, weight, count, before in zip(needed_bytes, weights, counts, beside, strict=True)
        ]


class _Layers:
    """A model's layers: its blocks and, as the last one, its output."""

    def __init__(self, file: GgufFile) -> None:
        self.count = (file.block_count or 0) + 1
        self.have_experts = bool(file.expert_count)
        self._tensors = file.tensors

    def sizes_bytes(self, layers: int, kept: int) -> list[int]:
        """The weights that each of the last ``layers`` layers has on a device, without the experts of the
        first ``kept`` layers of all."""
        sizes = [0] * self.count
        outside = {OUTPUT: 0, EMBEDDINGS: 0}
        for tensor in self._tensors:
            block = _BLOCK.match(tensor.name)
            if block is None:
                outside[tensor.name] = tensor.data_bytes
            elif not (_EXPERTS.search(tensor.name) and int(block[1]) < kept):
                sizes[int(block[1])] += tensor.data_bytes
        # A model without an output matrix has its embeddings there once more.
        sizes[-1] = outside[OUTPUT] or outside[EMBEDDINGS]
        return sizes[self.count - layers :]
