"""The sequential test: its arithmetic, its promise under simulation, its sense of when to stop."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from ggq.bench import sequential
from ggq.bench.sequential import Interval


def evidence(values: list[float], mean: float, g: float) -> float:
    """E_n(mean), as the module's docstring writes it."""
    n = len(values)
    t = math.sqrt(n) * (statistics.fmean(values) - mean) / statistics.stdev(values)
    ratio = (1 + t**2 / (n - 1)) / (1 + t**2 / ((n - 1) * (1 + n * g)))
    return (1 + n * g) ** -0.5 * ratio ** (n / 2)


def test_the_interval_ends_where_the_evidence_reaches_its_limit() -> None:
    noise = random.Random(5)
    values = [noise.gauss(3, 2) for _ in range(20)]
    interval = sequential.confidence_interval(values, 0.01)
    for end in (interval.low, interval.high):
        assert evidence(values, end, sequential.EFFECT_VARIANCE) == pytest.approx(100)
    assert interval.low < statistics.fmean(values) < interval.high


def t_density(t: float, freedom: int, shift: float) -> float:
    """Of the noncentral t distribution: a normal of mean ``shift`` over the root of a chi square by its
    degrees of freedom, integrated over that root."""
    import numpy as np

    root = np.linspace(1e-4, 6, 3000)
    log_chi = (
        (1 - freedom / 2) * math.log(2) - math.lgamma(freedom / 2) + 0.5 * freedom * math.log(freedom)
        + (freedom - 1) * np.log(root) - 0.5 * freedom * root**2
    )  # fmt: skip
    normal = np.exp(-0.5 * (t * root - shift) ** 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(normal * root * np.exp(log_chi), root))


def test_the_evidence_is_a_bayes_factor() -> None:
    """Against the integral that it stands for: t under effects distributed N(0, g), over t under none."""
    import numpy as np

    n, g, t = 12, 2.5, 3.1
    values = [float(step) for step in range(n)]
    null = statistics.fmean(values) - t * statistics.stdev(values) / math.sqrt(n)
    effects = np.linspace(-10, 10, 801)
    prior = np.exp(-0.5 * effects**2 / g) / math.sqrt(2 * math.pi * g)
    densities = [t_density(t, n - 1, effect * math.sqrt(n)) for effect in effects]
    marginal = float(np.trapezoid(prior * densities, effects))
    assert evidence(values, null, g) == pytest.approx(marginal / t_density(t, n - 1, 0), rel=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 1.0, 1.0]])
def test_too_few_rounds_say_nothing(values: list[float]) -> None:
    assert sequential.confidence_interval(values, 0.001) == Interval(-math.inf, math.inf)


def test_a_model_and_its_copy_differ_by_nothing() -> None:
    figures = {"one": [0.3, 0.4, 0.5, 0.4, 0.3], "copy": [0.3, 0.4, 0.5, 0.4, 0.3]}
    [pair] = sequential.compare(figures, indifference=0.001)
    assert pair.verdict == "indifferent" and pair.difference == 0


def test_a_clear_order_is_settled_within_a_few_rounds_though_rounds_differ_much() -> None:
    noise = random.Random(1)
    hard = [math.exp(noise.gauss(0, 0.3)) for _ in range(10)]
    figures = {
        name: [scale * it * noise.gauss(1, 0.02) for it in hard]
        for name, scale in (("worse", 0.015), ("better", 0.01))
    }
    [pair] = sequential.compare(figures, indifference=0.001)
    assert (pair.better, pair.worse, pair.verdict) == ("better", "worse", "ordered")
    # Unpaired, the ranges of their figures overlap.
    assert min(figures["worse"]) < max(figures["better"])


def test_close_models_are_settled_to_be_alike() -> None:
    noise = random.Random(2)
    figures = {name: [0.01 + noise.gauss(0, 1e-5) for _ in range(12)] for name in ("one", "two")}
    [pair] = sequential.compare(figures, indifference=0.001)
    assert pair.verdict == "indifferent"


def simulated_stop(noise: random.Random, means: dict[str, float], rounds: int) -> bool:
    """Measure in rounds as ggq does, look after each, stop when all is settled; True: an order was wrong."""
    figures: dict[str, list[float]] = {name: [] for name in means}
    for _ in range(rounds):
        # A round's text is hard or easy for all, with a heavy tail; presets scatter about their own mean.
        hard = math.exp(noise.gauss(0, 0.5))
        for name, mean in means.items():
            figures[name].append(mean * hard * math.exp(noise.gauss(0, 0.2)))
        pairs = sequential.compare(figures, indifference=1e-9)
        if any(pair.verdict == "ordered" and means[pair.better] > means[pair.worse] for pair in pairs):
            return True
        if all(pair.verdict == "ordered" for pair in pairs):
            return False
    return False


@pytest.mark.parametrize(
    "means",
    [
        {"a": 0.0100, "b": 0.0101},
        {"a": 0.010, "b": 0.0102, "c": 0.0104, "d": 0.0106},
        {"a": 0.0003, "b": 0.0017, "c": 0.0035, "d": 0.0040, "e": 0.0104, "f": 0.0113},
    ],
)
def test_the_wrong_order_rate_stays_below_the_promise(means: dict[str, float]) -> None:
    """Looking after each of 60 rounds, on figures with heavier tails than the method supposes."""
    noise = random.Random(7)
    runs = 300
    wrong = sum(simulated_stop(noise, means, 60) for _ in range(runs))
    assert wrong / runs <= 0.05


def test_an_ordinary_test_would_break_that_promise() -> None:
    """The simulation tells the difference: looked at every round, a plain 95 % t test is often wrong."""
    noise = random.Random(7)
    runs, wrong = 200, 0
    for _ in range(runs):
        values: list[float] = []
        for _ in range(60):
            values.append(noise.gauss(0, 1))
            if len(values) > 4:
                t = statistics.fmean(values) / statistics.stdev(values) * math.sqrt(len(values))
                if abs(t) > 2.3:
                    wrong += 1
                    break
    assert wrong / runs > 0.1
