"""What a plan says: of the model, the machine, and each preset."""

from __future__ import annotations

from dataclasses import dataclass

from ggq.estimation.estimator import PresetSize
from ggq.estimation.hollow_model import ModelSource
from ggq.estimation.memory import MemoryEstimate
from ggq.estimation.placement import Room
from ggq.estimation.speed import SpeedEstimate
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.server import Companions
from ggq.llamacpp.threads import ThreadChoice
from ggq.presets.published_kld import PublishedKld


@dataclass(frozen=True)
class LoadPlan:
    """A preset loaded in one way: what that takes, and how fast it is (None: not predicted). What ``memory``
    calls free is what may be used: what is left to others is taken off."""

    offload: Offload
    memory: MemoryEstimate
    speed: SpeedEstimate | None

    @property
    def fits(self) -> bool:
        return self.memory.missing_bytes == 0


@dataclass(frozen=True)
class PresetPlan:
    """A preset before it is made: ``size``, exact, and ``loads``, one for each context and type of cache.
    ``published``: published KLD of another model, near in size, and never a measurement of this one;
    ``other_published``: of further ones, nearest size first. ``published_preset``: whose these are: another's
    where most of this file fell back to that one's type (None: nobody's)."""

    preset: str
    size: PresetSize
    loads: tuple[LoadPlan, ...]
    published: PublishedKld | None
    other_published: tuple[PublishedKld, ...] = ()
    published_preset: str | None = None


@dataclass(frozen=True)
class Plan:
    """``source``: the model, whose weights may not be on this disk, which has ``disk_free_bytes``;
    ``layer_count``: the output layer
    counted, as in n_gpu_layers; ``devices``: that may hold layers; ``room``: memory that may be used;
    ``companions``: what is loaded beside it, and ``companions_room``: what these take, off the room;
    ``threads``: that the speed was predicted with, or that were asked for (None: of another machine, which
    has its own); ``is_elsewhere``: it is of another machine, whose devices are called GPU0, GPU1 …;
    ``alike``: presets that make the same of it."""

    source: ModelSource
    parameter_count: int
    context_length: int | None
    layer_count: int
    devices: tuple[str, ...]
    room: Room
    companions: Companions
    companions_room: Room
    threads: ThreadChoice | None
    is_elsewhere: bool
    presets: tuple[PresetPlan, ...]
    disk_free_bytes: int
    seconds: float
    alike: tuple[tuple[str, ...], ...] = ()
    is_encoder: bool = False

    @property
    def must_be_streamed(self) -> bool:
        """Whether the checkpoint has no room on this disk."""
        return self.source.download_bytes > self.disk_free_bytes

    def is_whole(self, load: LoadPlan) -> bool:
        """Whether all of the model is on the devices, but for the embeddings, which llama.cpp leaves out."""
        return load.offload.n_gpu_layers == self.layer_count and not load.offload.n_cpu_moe
