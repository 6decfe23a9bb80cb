"""Repeated timings of one piece of work: what is quoted of them, and when there are enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ggq.llamacpp.perplexity import Estimate
from ggq.settings import Option


@dataclass(frozen=True)
class Rate:
    """Tokens per second over repetitions, made in batches of a process each; the median is quoted.

    ``relative_standard_error``: of the mean, as a share of it: s/√n over the repetitions, or over the means
    of the batches where that is more, since what slows one process down slows all its repetitions;
    ``relative_deviation``: s over the repetitions, likewise a share; both None for a single repetition.
    ``samples_ns``: the time of each, in order; ``batches``: how many there are in each batch.
    """

    median_tokens_per_s: float
    mean_tokens_per_s: float
    relative_standard_error: float | None
    relative_deviation: float | None
    samples_tokens_per_s: tuple[float, ...]
    samples_ns: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def estimate(self) -> Estimate:
        """The median with the mean's error, in tokens per second."""
        share = self.relative_standard_error
        median = self.median_tokens_per_s
        return Estimate(median, None if share is None else median * share)


def rate(tokens: int, batches: Sequence[Sequence[int]]) -> Rate:
    """What batches of timings in nanoseconds, each of the same number of tokens, come to."""
    speeds = [[1e9 * tokens / ns for ns in batch] for batch in batches]
    samples = [speed for batch in speeds for speed in batch]
    mean = statistics.fmean(samples)
    errors = [_standard_error(values) for values in (samples, list(map(statistics.fmean, speeds)))]
    return Rate(
        median_tokens_per_s=statistics.median(samples),
        mean_tokens_per_s=mean,
        relative_standard_error=max(errors) / mean if len(samples) > 1 else None,
        relative_deviation=statistics.stdev(samples) / mean if len(samples) > 1 else None,
        samples_tokens_per_s=tuple(samples),
        samples_ns=tuple(ns for batch in batches for ns in batch),
        batches=tuple(len(batch) for batch in batches),
    )


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Precision:
    """When to stop: after two batches, at a relative standard error below ``target``; or after ``most``
    repetitions, or ``most_seconds`` of them. ``batch``: repetitions in a batch."""

    target: float = 0.02
    batch: int = 3
    most: Annotated[
        int,
        Option(
            "-r",
            "--repetitions",
            aliases=("--reps",),
            least=1,
            help="Repetitions at most; fewer when the error is below 2 % before.",
        ),
    ] = 30
    most_seconds: float = 60

    def settled(self, so_far: Rate) -> bool:
        """Whether the error is small enough; a single repetition has none to show."""
        error = so_far.relative_standard_error
        return error is not None and error < self.target

    def next_batch(self, so_far: Rate | None) -> int:
        """How many more repetitions to make; 0: there are enough."""
        if so_far is None:
            return min(self.batch, self.most)
        if len(so_far.batches) > 1 and self.settled(so_far):
            return 0
        made, spent_s = len(so_far.samples_ns), sum(so_far.samples_ns) / 1e9
        in_time = math.floor(made * (self.most_seconds / spent_s - 1))
        return max(0, min(self.batch, self.most - made, in_time))


def pooled_deviation(rates: Sequence[Rate]) -> float | None:
    """The root mean square of the rates' relative deviations; None where none has one."""
    squares = [each.relative_deviation**2 for each in rates if each.relative_deviation is not None]
    return math.sqrt(statistics.fmean(squares)) if squares else None


def human_rate(tokens_per_s: float) -> str:
    """``12345.6`` -> ``12,346``; ``45.67`` -> ``45.7``; ``3.456`` -> ``3.46``: three digits or more."""
    digits = 0 if tokens_per_s >= 100 else 1 if tokens_per_s >= 10 else 2
    return f"{tokens_per_s:,.{digits}f}"
