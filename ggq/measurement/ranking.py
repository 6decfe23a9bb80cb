"""When has enough been measured to rank models? Anytime-valid tests on paired differences.

Every round gives each model one figure on the same tokens, so that two models are compared by the differences
of their figures, round by round; what is hard in the text is hard for both and cancels. Looking after every
round and stopping when it pleases would ruin an ordinary test. The one used here may be looked at as often as
one likes: its evidence against "the true mean difference is mu",

    E_n(mu) = (1 + n g)^(-1/2) * [ (1 + t^2/v) / (1 + t^2/(v (1 + n g))) ]^(n/2),   v = n - 1,

with t the usual t statistic of n differences, is the Bayes factor of an effect size distributed N(0, g)
against none, under the right Haar prior of the spread (Gonen, Johnson, Lu, Westfall: The Bayesian two-sample
t test, The American Statistician 59, 2005). As such it is an e-process: whenever one stops, E exceeds c with
probability at most 1/c when mu is true (Perez-Ortiz, Lardy, de Heide, Grunwald: E-statistics, group
invariance and anytime-valid testing, Annals of Statistics 52, 2024). It supposes differences that are
independent and about normal: rounds are drawn at random, and each is a mean over hundreds of tokens.

Of k models there are k (k - 1)/2 pairs, and each is held to E >= pairs/error_rate, so that all that is said
of all of them, at any time, is right together with probability 1 - error_rate (Bonferroni).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ggq.system import codec

# The spread of effect sizes (mean difference over its spread between rounds) that the test is best at:
# neighbouring presets differ by one to ten times that spread. It bears on how soon one stops, not on errors.
EFFECT_VARIANCE = 10.0
# A model and its copy differ by nothing at all in every round: so many of them are believed.
_LEAST_EQUAL = 5

_INFINITIES = {"low": -math.inf, "high": math.inf}


class Verdict(StrEnum):
    """What is known of two models' order."""

    ORDERED = "ordered"
    INDIFFERENT = "indifferent"
    UNSETTLED = "unsettled"


@dataclass(frozen=True)
class Interval:
    """An interval of a mean that is valid whenever one looks; infinite where nothing can be said."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def within(self, bound: float) -> bool:
        return -bound < self.low and self.high < bound


# JSON has no infinity: an end that nothing bounds is null there.
codec.form(
    Interval,
    written=lambda raw: {name: end if math.isfinite(end) else None for name, end in raw.items()},
    read=lambda raw: {name: _INFINITIES[name] if end is None else end for name, end in raw.items()},
)


@dataclass(frozen=True)
class Comparison:
    """Two models that are neighbours in the ranking: ``better`` has the smaller mean so far.

    ``difference``: mean of worse less better; ``interval`` holds the true one. ``ordered``: the order is
    settled; ``indifferent``: the difference is settled to be too small to matter; ``unsettled``: neither.
    """

    better: str
    worse: str
    difference: float
    interval: Interval
    verdict: Verdict


def confidence_interval(values: Sequence[float], error_rate: float, g: float = EFFECT_VARIANCE) -> Interval:
    """All means that the evidence of ``values`` does not exclude at ``error_rate``: E_n(mu) < 1/error_rate.

    Infinite while there are too few values to say anything.
    """
    n = len(values)
    everything = Interval(-math.inf, math.inf)
    if n < 2:
        return everything
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if spread == 0:
        # Equal to the last printed digit: no spread to go by.
        return Interval(mean, mean) if n >= _LEAST_EQUAL else everything
    # E_n(mu) < c solved for t^2/v, with growth = (c sqrt(1 + n g))^(2/n).
    growth = math.exp(2 / n * (0.5 * math.log1p(n * g) - math.log(error_rate)))
    if growth >= 1 + n * g:
        return everything
    t_squared = (n - 1) * (growth - 1) / (1 - growth / (1 + n * g))
    half_width = math.sqrt(t_squared / n) * spread
    return Interval(mean - half_width, mean + half_width)


def compare(
    figures: Mapping[str, Sequence[float]], *, indifference: float, error_rate: float = 0.05
) -> tuple[Comparison, ...]:
    """The neighbours in the ranking by mean figure, smallest first, and what is settled about each pair.

    ``figures``: of every model one figure per round, the same rounds in the same order. All intervals hold
    together, whenever one looks, with probability 1 - ``error_rate``.
    """
    pairs = max(1, len(figures) * (len(figures) - 1) // 2)
    ranking = sorted(figures, key=lambda name: statistics.fmean(figures[name]))
    return tuple(
        _compare(better, worse, figures, indifference, error_rate / pairs)
        for better, worse in itertools.pairwise(ranking)
    )


def _compare(
    better: str, worse: str, figures: Mapping[str, Sequence[float]], indifference: float, error_rate: float
) -> Comparison:
    differences = [high - low for low, high in zip(figures[better], figures[worse], strict=True)]
    interval = confidence_interval(differences, error_rate)
    verdict = Verdict.UNSETTLED
    if interval.excludes_zero():
        verdict = Verdict.ORDERED
    elif interval.within(indifference):
        verdict = Verdict.INDIFFERENT
    return Comparison(better, worse, statistics.fmean(differences), interval, verdict)
