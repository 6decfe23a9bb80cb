"""What a plan is asked for: contexts, placement, companions, perhaps another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ggq.errors import UsageProblem
from ggq.llamacpp.offload import parse_layers
from ggq.llamacpp.words import CacheType
from ggq.settings import Option, settle
from ggq.units import parse_memory, parse_seconds

DEFAULT_BUDGET_S = 60.0
USUAL_CACHE = CacheType.F16
_LEAST_CONTEXT = 16


@dataclass(frozen=True)
class PlanSettings:
    """For which contexts (tokens; none: 4096, or what the model has), types of cache and placement.

    ``type_k``, ``type_v``: of the cache's keys and values, in pairs (no values: as the keys; none: f16).
    ``n_gpu_layers``: None: as many as fit on the devices that llama.cpp sees; ``rpc``: servers whose devices
    count as well. ``speed_budget_s``: seconds that running hollow models may take, 0 for no speed;
    ``threads``: None: as many as are best for prompts and for generation, each.

    ``draft``, ``projector``: GGUF files that are to be loaded beside the model (a draft model for speculative
    decoding, an mmproj); what they take is taken off what may be used.

    ``ram_bytes``, ``vram_bytes`` (of each of ``gpu_count`` GPUs): of another machine than this one, where all
    of it is free; None: what is free here. Its GPUs are played by llama.cpp's RPC devices, whose buffers for
    computing can differ from a real GPU's by some percent. Its speed and its best threads are not predicted.
    ``reserve_ram_bytes``, ``reserve_vram_bytes`` (of each device): what is left to others; None: a tenth of
    all, at most 1 GiB, which is the margin that llama.cpp's own fit leaves.
    """

    contexts: Annotated[
        tuple[int, ...], Option(
            "-c", "--ctx-size", aliases=("--ctx",), split=True, least=_LEAST_CONTEXT, metavar="N,...",
            help="Contexts in tokens (`ggq recommend` takes one). Default: 4096, or the model's.",
        ),
    ] = ()  # fmt: skip
    type_k: Annotated[
        tuple[CacheType, ...], Option(
            "-ctk", "--cache-type-k", aliases=("--kv",), split=True, metavar="TYPE,...",
            help="Types of the cache's keys, as f16,q8_0 (`ggq recommend` takes one). Default: f16.",
        ),
    ] = ()  # fmt: skip
    type_v: Annotated[
        tuple[CacheType, ...], Option(
            "-ctv", "--cache-type-v", split=True, metavar="TYPE,...",
            help="Types of its values, one for each of the keys'. Default: the same.",
        ),
    ] = ()  # fmt: skip
    n_gpu_layers: Annotated[
        int | None, Option(
            "-ngl", "--n-gpu-layers", parse=parse_layers, metavar="N|auto|all",
            help="Layers on GPUs, the output layer counted. Default: as many as fit.",
        ),
    ] = None  # fmt: skip
    rpc: Annotated[
        tuple[str, ...],
        Option("--rpc", split=True, metavar="HOST:PORT,...", help="Servers whose devices count as GPUs."),
    ] = ()
    threads: Annotated[
        int | None, Option("-t", "--threads", least=1, help="Threads. Default: the best count for each.")
    ] = None
    speed_budget_s: Annotated[
        float, Option(
            "--budget", parse=parse_seconds, metavar="TIME", shown_default=f"{DEFAULT_BUDGET_S:.0f}s",
            help="How long models without weights may run to predict the speed.",
        ),
    ] = DEFAULT_BUDGET_S  # fmt: skip
    no_speed: Annotated[bool, Option("--no-speed", help="Predict no speed.")] = False
    draft: Annotated[
        Path | None, Option(
            "-md", "--model-draft", aliases=("--draft",), exists=True, metavar="FILE",
            help="A GGUF of a draft model that is loaded beside it: its memory is counted.",
        ),
    ] = None  # fmt: skip
    projector: Annotated[
        Path | None, Option(
            "-mm", "--mmproj", exists=True, metavar="FILE",
            help="A projector (mmproj) that is loaded beside it: its memory is counted.",
        ),
    ] = None  # fmt: skip
    ram_bytes: Annotated[
        int | None, Option("--ram", parse=parse_memory, metavar="SIZE", help="Of another machine, as 16G.")
    ] = None
    vram_bytes: Annotated[
        int | None, Option(
            "--vram", parse=parse_memory, metavar="SIZE", help="Of a GPU of another machine; 0: it has none."
        ),
    ] = None  # fmt: skip
    gpu_count: Annotated[
        int, Option("--gpu-count", least=1, help="How many such GPUs another machine has.")
    ] = 1
    reserve_ram_bytes: Annotated[
        int | None, Option(
            "--reserve-ram", parse=parse_memory, metavar="SIZE",
            help="RAM to leave to others. Default: a tenth, at most 1 GiB.",
        ),
    ] = None  # fmt: skip
    reserve_vram_bytes: Annotated[
        int | None, Option("--reserve-vram", parse=parse_memory, metavar="SIZE", help="The same on each GPU.")
    ] = None

    def __post_init__(self) -> None:
        settle(self)

    def check(self) -> None:
        """Raises UsageProblem for settings that say nothing together."""
        if self.gpu_count != 1 and not self.vram_bytes:
            raise UsageProblem(
                f"{self.gpu_count} GPUs of no memory were asked for.",
                "--gpu-count is for another machine, whose GPUs have --vram each.",
                "Give --vram, or leave --gpu-count out: this machine's own GPUs are counted by llama.cpp.",
            )
        if self.type_v and len(self.type_v) != len(self.type_k or (USUAL_CACHE,)):
            raise UsageProblem(
                "The cache's keys and values do not pair.",
                f"{len(self.type_k or (USUAL_CACHE,))} types of keys, {len(self.type_v)} of values.",
                "Give as many of each.",
            )

    @property
    def cache_types(self) -> tuple[tuple[str, str], ...]:
        """The types of keys and values."""
        keys = self.type_k or (USUAL_CACHE,)
        return tuple((k.value, v.value) for k, v in zip(keys, self.type_v or keys, strict=True))

    @property
    def budget_s(self) -> float:
        """Seconds for speeds; 0: none are predicted."""
        return 0.0 if self.no_speed else self.speed_budget_s

    @property
    def is_elsewhere(self) -> bool:
        """Whether another machine than this one is asked about."""
        return self.ram_bytes is not None or self.vram_bytes is not None
