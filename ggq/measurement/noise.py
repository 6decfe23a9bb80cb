"""What two figures differ by when nothing but chance is between them: standard errors, Welch, Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.throughput import Rate

ENOUGH_ROUNDS = 8  # from so many on their spread is a measure of their mean
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class StandardError:
    """A standard error, and the degrees of freedom that it was estimated with."""

    value: float
    freedom: float = math.inf

    @property
    def noise(self) -> float:
        """What a difference with this error exceeds by chance in one case of twenty."""
        return quantile(self.freedom) * self.value


def quantile(freedom: float) -> float:
    """Student's t that is exceeded either way in one case of twenty; at infinite freedom the normal's."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))


def independent(one: StandardError | None, other: StandardError | None) -> StandardError | None:
    """The error of a difference of independent figures; None where one of them is not known."""
    if one is None or other is None:
        return None
    error = math.hypot(one.value, other.value)
    if not error:
        return StandardError(0.0)
    per_freedom = sum((each.value / error) ** 4 / each.freedom for each in (one, other))
    return StandardError(error, 1 / per_freedom if per_freedom else math.inf)


def of_mean(values: Sequence[float]) -> StandardError:
    """From the spread of at least two values."""
    return StandardError(statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1)


def of_text(figure: Estimate, rounds: int) -> StandardError | None:
    """Of a figure on a text: of enough rounds their spread, of fewer the tool's, over thousands of tokens."""
    if figure.standard_error is None:
        return None
    return StandardError(figure.standard_error, rounds - 1 if rounds >= ENOUGH_ROUNDS else math.inf)


def of_sitting(rate: Rate) -> StandardError | None:
    """By how much another sitting may differ: the error of the mean over repetitions, or the deviation of the
    processes' means from each other where that is more. None for a single repetition."""
    values = rate.samples_tokens_per_s
    if len(values) < 2:
        return None
    samples = iter(values)
    means = [statistics.fmean(next(samples) for _ in range(count)) for count in rate.batches]
    repeated = of_mean(values)
    between = StandardError(statistics.stdev(means), len(means) - 1) if len(means) > 1 else repeated
    return max(repeated, between, key=lambda error: error.value)
