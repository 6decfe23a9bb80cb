"""Rounds of a measurement put together: means over rounds, and what their spread says of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ggq.llamacpp.perplexity import Divergence, Estimate
from ggq.measurement.excerpts import Excerpt
from ggq.system import codec
from ggq.system.codec import Inlined

# From so many rounds on their spread is a better measure than what the tool says of single tokens.
_ENOUGH_ROUNDS = 8


@dataclass(frozen=True)
class Round:
    """One excerpt, the tokens that were scored on it, and every model's divergence there, by name.
    ``tokens``: of its chunks; a result does not keep them."""

    excerpt: Excerpt
    scored_tokens: int
    divergences: Mapping[str, Divergence]
    tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ModelQuality:
    """A model on all rounds together. Median and 99th percentile are means of the rounds' own; the maximum is
    the largest seen."""

    name: str
    divergence: Annotated[Divergence, Inlined()]


# Estimates of which nobody knew an error were once plain numbers; the base's perplexity was not kept of all
# rounds together, and follows from the model's own and their mean ratio.
codec.form(Estimate, read=lambda raw: {"value": raw} if isinstance(raw, int | float) else raw)
codec.form(Divergence, read=lambda raw: {"base_perplexity": _base_perplexity(raw), **raw})


def _base_perplexity(raw: Mapping[str, Any]) -> float:
    return float(raw["perplexity"]["value"] / math.exp(raw["ln_ppl_ratio"]["value"]))


def summary(name: str, rounds: Sequence[Round]) -> ModelQuality:
    """A model on all rounds together."""
    found = [part.divergences[name] for part in rounds]
    squares = _combined(
        rounds,
        [
            Estimate(item.rms_dp.value**2, 2 * item.rms_dp.value * (item.rms_dp.standard_error or 0))
            for item in found
        ],
    )
    rms = math.sqrt(squares.value)
    return ModelQuality(
        name,
        Divergence(
            perplexity=perplexity(rounds, name, lambda item: item.perplexity),
            base_perplexity=perplexity(rounds, name, lambda item: item.base_perplexity),
            ln_ppl_ratio=_combined(rounds, [item.ln_ppl_ratio for item in found]),
            mean_kld=_combined(rounds, [item.mean_kld for item in found]),
            median_kld=_combined(rounds, [item.median_kld for item in found]),
            p99_kld=_combined(rounds, [item.p99_kld for item in found]),
            max_kld=max(item.max_kld for item in found),
            same_top=_combined(rounds, [item.same_top for item in found]),
            # d(x^2) = 2 x dx
            rms_dp=Estimate(
                rms, squares.standard_error / (2 * rms) if squares.standard_error and rms else None
            ),
        ),
    )


def perplexity(rounds: Sequence[Round], name: str, of: Callable[[Divergence], Estimate]) -> Estimate:
    """exp of the mean log probability over all rounds; d(exp x) = exp(x) dx."""
    logs = [
        Estimate(math.log(item.value), (item.standard_error or 0) / item.value)
        for item in (of(part.divergences[name]) for part in rounds)
    ]
    mean = _combined(rounds, logs)
    value = math.exp(mean.value)
    return Estimate(value, value * mean.standard_error if mean.standard_error is not None else None)


def _combined(rounds: Sequence[Round], figures: Sequence[Estimate]) -> Estimate:
    """The mean over rounds, weighted by their tokens.

    Its standard error is the spread of the rounds over the root of their number. Of a few rounds that spread
    is a poor measure: then the tool's own errors are added up, which take tokens for independent.
    """
    total = sum(part.scored_tokens for part in rounds)
    weights = [part.scored_tokens / total for part in rounds]
    values = [figure.value for figure in figures]
    mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
    if len(rounds) >= _ENOUGH_ROUNDS:
        return Estimate(mean, statistics.stdev(values) / math.sqrt(len(values)))
    errors = [figure.standard_error for figure in figures if figure.standard_error is not None]
    if len(errors) == len(figures):
        return Estimate(mean, math.hypot(*(w * e for w, e in zip(weights, errors, strict=True))))
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(mean, spread)
