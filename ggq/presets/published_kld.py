"""Published KLDs: what to expect of a preset before anything is measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedKld:
    """What a preset lost of a published ``model`` against 16 bits, without an imatrix.

    ``kld`` in nats per token: the mean KL divergence. ``of_perplexity``: only perplexities were published,
    and it is the logarithm of their ratio; of Llama-3-8B, of which both are known, that is 1.01 of the
    divergence for Q2_K, 0.88 for Q4_K_M, 0.59 for Q6_K. ``parameter_count``: None: not said. ``complete``:
    nearly all presets of the model were measured, so that its losses can be compared with each other.
    """

    model: str
    source: str
    kld: float
    parameter_count: int | None = None
    of_perplexity: bool = False
    complete: bool = True

    @property
    def measure(self) -> str:
        """What ``kld`` is, in words."""
        return "ln of the perplexities' ratio" if self.of_perplexity else "mean KLD"

    def distance(self, parameter_count: int) -> float:
        """From a model of that size: the logarithm of the sizes' ratio; 0 where its own is not said."""
        return abs(math.log(parameter_count / self.parameter_count)) if self.parameter_count else 0.0


@dataclass(frozen=True)
class PublishedFigures:
    """Published KLD against 16 bits of one ``model``: mean KL divergence in nats per token, and the increase
    of perplexity; each without and with an imatrix. ``source`` says who measured it on what;
    ``klds``: that and those of other models, all without a matrix."""

    model: str
    source: str
    mean_kld: float | None = None
    ppl_increase: float | None = None
    mean_kld_imatrix: float | None = None
    ppl_increase_imatrix: float | None = None
    klds: tuple[PublishedKld, ...] = ()

    def expected(self, parameter_count: int) -> PublishedKld | None:
        """Of a model of that size: what the complete one lost whose size is nearest, by ratio."""
        complete = [it for it in self.klds if it.complete]
        return min(complete, key=lambda it: it.distance(parameter_count), default=None)

    def others(self, parameter_count: int) -> tuple[PublishedKld, ...]:
        """The rest, nearest size first: how far they spread."""
        rest = [it for it in self.klds if it != self.expected(parameter_count)]
        return tuple(sorted(rest, key=lambda it: it.distance(parameter_count)))
