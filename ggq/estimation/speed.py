"""Tokens per second of a preset that is not there yet, from what its layers cost where they lie.

The time of a token is a straight line over the number of layers, through what one or two cuts of the model
took (``speed_meter``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.threads import ThreadChoice

# Where blocks lie: on the CPU with no device in use, on the CPU beside devices (which may compute prompts for
# it), on devices, and there but for their experts.
Kind = Literal["cpu", "beside", "device", "experts"]


@dataclass(frozen=True)
class RateEstimate:
    """``relative_error``: one standard error of the estimate, as a share of it."""

    tokens_per_s: float
    relative_error: float


@dataclass(frozen=True)
class SpeedEstimate:
    """Of a prompt and of generation in an empty context, and of generation at the end of a full one
    (``context_tokens``). ``layers``: the blocks of the hollow models that were run for it."""

    prompt: RateEstimate
    generation: RateEstimate
    full_context: RateEstimate
    context_tokens: int
    threads: ThreadChoice
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """Seconds of a token over the number of blocks, through what one or two cuts took (``points``: blocks ->
    seconds); ``error``: the relative standard error of each point."""

    points: tuple[tuple[int, float], ...]
    error: float

    def at(self, layers: int) -> tuple[float, float]:
        """Seconds of a token with so many blocks, and their standard error."""
        (first, low), (last, high) = self.points[0], self.points[-1]
        if layers == last or low >= high:
            # Of one point, or where noise is greater than the layers' time, all time is the layers'.
            share = layers / last
            return share * high, self.error * share * high * (1 if layers == last else 2)
        weight = (layers - first) / (last - first)
        return (
            weight * high + (1 - weight) * low,
            self.error * math.hypot(weight * high, (1 - weight) * low),
        )

    def of_layers(self, layers: int) -> tuple[float, float]:
        """The part of so many blocks alone, without what is spent once per token."""
        (first, low), (last, high) = self.points[0], self.points[-1]
        if low >= high:
            return self.at(layers)
        each = layers / (last - first)
        return each * (high - low), each * self.error * math.hypot(high, low)


@dataclass(frozen=True)
class Costs:
    """What tokens cost where the blocks lie in one place. ``depth_s``: seconds that each token of context
    adds to a generated one, per block."""

    prompt: Line
    generation: Line
    depth_s: float


def estimate(
    costs: Mapping[Kind, Costs],
    placement: Offload,
    block_count: int,
    context_tokens: int,
    threads: ThreadChoice,
) -> SpeedEstimate | None:
    """The speed of a model of ``block_count`` blocks, placed so; None where a place was not measured.

    The output layer goes to the devices first, as llama.cpp has it, so that of n layers n - 1 are blocks.
    """
    placed = blocks(placement, block_count)
    if not set(placed) <= set(costs):
        return None
    depth_s = sum(count * costs[kind].depth_s for kind, count in placed.items())

    def rate(lines: Mapping[Kind, Line], more_s: float = 0) -> RateEstimate:
        # What is spent once per token is spent where the output layer is.
        (home, count), *others = placed.items()
        parts = [lines[home].at(count), *(lines[kind].of_layers(number) for kind, number in others)]
        seconds = sum(part for part, _ in parts) + more_s
        return RateEstimate(1 / seconds, math.hypot(*(error for _, error in parts)) / seconds)

    generation = {kind: costs[kind].generation for kind in placed}
    return SpeedEstimate(
        prompt=rate({kind: costs[kind].prompt for kind in placed}),
        generation=rate(generation),
        full_context=rate(generation, depth_s * context_tokens),
        context_tokens=context_tokens,
        threads=threads,
        layers=tuple(count for count, _ in next(iter(generation.values())).points),
    )


def blocks(placement: Offload, block_count: int) -> dict[Kind, int]:
    """Where the blocks lie: place -> how many, the output layer's place first."""
    asked = placement.n_gpu_layers
    on_device = block_count if asked == ALL_LAYERS else min(max(0, asked - 1), block_count)
    if asked == 0:
        return {"cpu": block_count}
    # The experts that stay are those of the model's first layers, which are the last to be offloaded.
    kept = max(0, min(placement.n_cpu_moe, block_count) - (block_count - on_device))
    counts: dict[Kind, int] = {
        "device": on_device - kept,
        "experts": kept,
        "beside": block_count - on_device,
    }
    home: Kind = "device" if on_device - kept or not kept else "experts"
    return {home: counts[home]} | {kind: count for kind, count in counts.items() if count and kind != home}
