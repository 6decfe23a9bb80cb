"""What a recommendation is asked for, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from ggq.llamacpp.server import Serving
from ggq.operations.plan_types import LoadPlan, Plan
from ggq.settings import Option, settle


class Preference(StrEnum):
    """What counts more where both are to be had."""

    QUALITY = "quality"
    BALANCED = "balanced"
    SPEED = "speed"


@dataclass(frozen=True)
class Taste:
    """How speed and KLD are weighed: a choice's score is ``log2(min(t/s, enough)) - weight * KLD``.

    ``enough``: generated tokens per second beyond which more is worth nothing; ``weight``: halvings of speed
    that one nat of mean KL divergence is worth.
    """

    enough: float
    weight: float

    def score(self, tokens_per_s: float | None, kld: float) -> float:
        speed = math.log2(min(tokens_per_s, self.enough)) if tokens_per_s else 0.0
        return speed - self.weight * kld


# Silent reading goes at about 240 words a minute (Brysbaert 2019, doi 10.1016/j.jml.2019.104047), some 6
# tokens/s. The weights are a choice: with 10, Q4_K_M is preferred to Q5_K_M where that is over 13 % slower
# (published KLDs), and Q3_K_M to Q4_K_M only where it is over 63 % faster.
TASTES: Mapping[Preference, Taste] = {
    Preference.QUALITY: Taste(enough=6, weight=30),
    Preference.BALANCED: Taste(enough=30, weight=10),
    Preference.SPEED: Taste(enough=math.inf, weight=4),
}


@dataclass(frozen=True)
class Limits:
    """What a choice must keep. ``min_tokens_per_s``: of generation, still with a full context; ``max_kld``:
    mean KLD in nats per token. ``records``: of ``ggq bench``, whose measured KLD of this model takes the
    published one's place."""

    min_tokens_per_s: Annotated[
        float | None, Option(
            "--min-tps", least=0, help="Tokens per second to generate at least, with a full context."
        ),
    ] = None  # fmt: skip
    max_kld: Annotated[
        float | None, Option(
            "--max-kld", aliases=("--max-loss",), least=0, help="Mean KL divergence to accept at most."
        ),
    ] = None  # fmt: skip
    prefer: Annotated[Preference, Option("--prefer", help="What counts more where both are to be had.")] = (
        Preference.BALANCED
    )
    records: Annotated[
        tuple[Path, ...], Option(
            "--record", exists=True, metavar="FILE",
            help="Record of `ggq bench` of this model: its measured KLD counts. May be repeated.",
        ),
    ] = ()  # fmt: skip

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Candidate:
    """A preset in one placement. ``kld`` in nats per token, ``measured`` on this model or published for
    another; ``score``: by the taste, higher is better; ``rank``: by which they are sorted, the score last."""

    preset: str
    file_bytes: int
    load: LoadPlan
    kld: float
    measured: bool
    score: float
    rank: tuple[bool, bool, float, float]

    @property
    def tokens_per_s(self) -> float | None:
        return self.load.speed.generation.tokens_per_s if self.load.speed else None

    @property
    def slowest_tokens_per_s(self) -> float | None:
        """At the end of a full context."""
        return self.load.speed.full_context.tokens_per_s if self.load.speed else None


@dataclass(frozen=True)
class Recommendation:
    """``chosen``, with ``reasons`` in words; ``others``, best first, and ``trades``: what each would gain and
    cost. ``file``: where it will be; ``commands``: to make it and to serve it; ``llama``: keyword arguments
    for llama-cpp-python (None: it cannot do this)."""

    plan: Plan
    chosen: Candidate
    reasons: tuple[str, ...]
    others: tuple[Candidate, ...]
    trades: tuple[str, ...]
    serving: Serving
    file: Path
    commands: Mapping[str, tuple[str, ...]]
    llama: Mapping[str, Any] | None
    limits: Limits = field(default_factory=Limits)
