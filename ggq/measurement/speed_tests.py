"""What is asked of a model and of a machine when speed is measured: points and placements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggq.errors import CannotServe, UsageProblem
from ggq.gguf.file import GgufFile
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.measurement.throughput import Precision, rate
from ggq.system.hardware import Device

PROMPT_TOKENS, GENERATED_TOKENS = 512, 128  # llama-bench's own
QUICK_PROMPT_TOKENS, QUICK_GENERATED_TOKENS = 128, 32


@dataclass(frozen=True)
class Point:
    """One figure: the rate of a prompt of so many tokens, or of generating so many, after ``depth_tokens``
    in the context."""

    test: Literal["prompt", "generation"]
    tokens: int
    depth_tokens: int

    def __str__(self) -> str:
        """As llama-bench names it: ``pp512``, ``tg128 @ d4096``."""
        depth = f" @ d{self.depth_tokens}" if self.depth_tokens else ""
        return f"{'pp' if self.test == 'prompt' else 'tg'}{self.tokens}{depth}"


# --- points ----------------------------------------------------------------------------------------------


def points(
    gguf: GgufFile,
    prompt_tokens: Sequence[int] | None,
    generated_tokens: Sequence[int] | None,
    depths: Sequence[int],
    *,
    quick: bool = False,
) -> tuple[Point, ...]:
    """Every figure of one placement: prompts, then generation, at each depth.

    None: the default length, or what the model's context has room for; lengths of 0 are left out.
    An encoder generates nothing. Raises UsageProblem when nothing is asked for, CannotServe for more than the
    model's context holds.
    """
    if gguf.is_encoder:
        if any(generated_tokens or ()):
            raise CannotServe(
                f"{gguf.path.name} generates no text.",
                f"It is an encoder ({gguf.architecture}): it makes vectors of whole texts.",
                "Leave out -n.",
            )
        generated_tokens = ()
    found: dict[Point, None] = {}
    for depth in depths:
        _require_room(gguf, depth + 1, f"a depth of {depth}")
        after = f" at a depth of {depth}" if depth else ""
        room = None if gguf.context_length is None else gguf.context_length - depth
        for tokens in _lengths(prompt_tokens, QUICK_PROMPT_TOKENS if quick else PROMPT_TOKENS, room):
            _require_room(gguf, depth + tokens, f"a prompt of {tokens} tokens{after}")
            found[Point("prompt", tokens, depth)] = None
        for tokens in _lengths(generated_tokens, QUICK_GENERATED_TOKENS if quick else GENERATED_TOKENS, room):
            _require_room(gguf, depth + tokens, f"{tokens} generated tokens{after}")
            found[Point("generation", tokens, depth)] = None
    if not found:
        raise UsageProblem("There is nothing to measure.", "", "Ask for a prompt (-p) or tokens (-n).")
    return tuple(found)


def _lengths(asked: Sequence[int] | None, default: int, room: int | None) -> Sequence[int]:
    if asked is None:
        return (default if room is None else min(default, room),)
    return tuple(tokens for tokens in asked if tokens > 0)


def _require_room(gguf: GgufFile, tokens: int, what: str) -> None:
    context = gguf.context_length
    if context is not None and tokens > context:
        raise CannotServe(
            f"{gguf.path.name} has no room for {what}.",
            f"That needs a context of {tokens:,} tokens; the model was trained for {context:,}.",
            "Ask for less with -p, -n and -d.",
        )


def batches_wanted(precision: Precision, taken: Mapping[Point, Sequence[Sequence[int]]]) -> dict[Point, int]:
    """How many more repetitions each point needs; without those that need none. ``taken``: in batches, ns."""
    counts = {
        point: precision.next_batch(rate(point.tokens, batches) if batches else None)
        for point, batches in taken.items()
    }
    return {point: count for point, count in counts.items() if count}


# --- placements ------------------------------------------------------------------------------------------


def layer_count(gguf: GgufFile) -> int:
    """Layers that can be offloaded: the blocks and the output layer."""
    return (gguf.block_count or 0) + 1


def placements(
    gguf: GgufFile,
    devices: Sequence[Device],
    n_gpu_layers: Sequence[int] | Literal["sweep"] | None,
    *,
    n_cpu_moe: int = 0,
    tensor_split: tuple[float, ...] = (),
    rpc: tuple[str, ...] = (),
) -> tuple[Offload, ...]:
    """The placements asked for, the fewest layers first.

    ``n_gpu_layers``: numbers of layers (ALL_LAYERS, and more than there are: all), ``sweep`` (none, a
    quarter, half, three quarters, all), None: all where there is a device, else none.

    Raises UsageProblem for layers on a GPU where llama.cpp has none, and for options that do not fit the
    model or the devices.
    """
    layers = layer_count(gguf)
    if n_gpu_layers == "sweep":
        n_gpu_layers = [layers * quarters // 4 for quarters in range(5)]
    elif n_gpu_layers is None:
        n_gpu_layers = [layers if devices else 0]
    counts = sorted({layers if count == ALL_LAYERS else min(count, layers) for count in n_gpu_layers})
    if counts[-1] > 0 and not devices:
        raise UsageProblem(
            "There is no GPU to put layers on.",
            "llama.cpp lists no device but the CPU.",
            "Leave --n-gpu-layers away, name a ggml-rpc-server with --rpc HOST:PORT, or see `ggq doctor`.",
        )
    if n_cpu_moe and not gguf.expert_count:
        raise UsageProblem(
            f"{gguf.path.name} has no experts to keep on the CPU.", "", "Leave --n-cpu-moe away."
        )
    if len(tensor_split) > len(devices):
        raise UsageProblem(
            f"The tensor split names {len(tensor_split)} shares for {len(devices)} devices.",
            ", ".join(str(device) for device in devices) or "llama.cpp lists no device but the CPU.",
            "Give a share for each device.",
        )
    return tuple(Offload(count, n_cpu_moe, tensor_split, rpc) if count else Offload() for count in counts)
