"""What a record keeps of a measurement of quality: of each file its own part, with every round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from ggq.llamacpp.offload import Offload
from ggq.llamacpp.perplexity import Divergence, Estimate
from ggq.measurement.excerpts import Excerpt
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.measurement.ranking import Comparison
from ggq.measurement.transformers_perplexity import ReferencePerplexity
from ggq.measurement.words import Stopped, Until
from ggq.system import codec
from ggq.system.codec import Inlined, LeftOutIfDefault


@dataclass(frozen=True)
class BaseModel:
    """The file that others are compared with."""

    name: str
    sha256: str


@dataclass(frozen=True)
class TextFile:
    """The text that quality is measured on."""

    name: str
    sha256: str
    file_bytes: int


@dataclass(frozen=True)
class Ground:
    """What all files of one measurement have in common: base, text, and how much of it was scored how.

    ``stopped``: why no more was measured; ``parse_special``, ``until`` … ``error_rate``: the settings.
    """

    base: BaseModel
    text: TextFile
    context: int
    text_tokens: int
    chunks: int
    scored_tokens: int
    stopped: Stopped
    until: Until
    seed: int
    indifference: float
    error_rate: float
    threads: int
    offload: Offload
    parse_special: bool = False


@dataclass(frozen=True)
class MeasuredRound:
    """One excerpt, and a file's divergence there."""

    excerpt: Excerpt
    scored_tokens: int
    divergence: Annotated[Divergence, Inlined()]


@dataclass(frozen=True)
class QualityMeasurement:
    """Quality of one file. ``measured_at``: UTC.

    Of a base its ``perplexity``, the ``ranking`` of the others, and its checkpoint's perplexity
    (``reference``) where that was asked for; of any other file the ``divergence`` from the base on all
    ``rounds`` together, and on each.
    """

    measured_at: str
    ground: Annotated[Ground, Inlined()]
    perplexity: Estimate
    divergence: Annotated[Divergence | None, Inlined(with_key="mean_kld")] = None
    rounds: Annotated[tuple[MeasuredRound, ...], LeftOutIfDefault()] = ()
    ranking: Annotated[tuple[Comparison, ...], LeftOutIfDefault()] = ()
    reference: Annotated[ReferencePerplexity | None, LeftOutIfDefault()] = None


# In a round these figures are plain numbers; median and percentile have no error there.
_PLAIN = ("median_kld", "p99_kld")
codec.form(MeasuredRound, written=lambda raw: raw | {name: raw[name]["value"] for name in _PLAIN})


def measurements(
    result: QualityResult, base: Subject, models: Sequence[Subject], measured_at: str
) -> Iterator[tuple[Subject, QualityMeasurement]]:
    """Of each file its own part of a quality measurement, the base first."""
    settings = result.settings
    ground = Ground(
        base=BaseModel(base.name, base.sha256),
        text=TextFile(result.text.name, result.text.sha256, result.text.file_bytes),
        context=result.context,
        text_tokens=result.text_tokens,
        chunks=result.chunks,
        scored_tokens=result.scored_tokens,
        stopped=result.stopped,
        until=settings.until,
        seed=settings.seed,
        indifference=settings.indifference,
        error_rate=settings.error_rate,
        threads=result.how.threads or 0,
        offload=result.how.offload,
        parse_special=result.parse_special,
    )
    yield (
        base,
        QualityMeasurement(
            measured_at, ground, result.base_perplexity, ranking=result.ranking, reference=result.reference
        ),
    )
    for model in result.models:
        rounds = tuple(
            MeasuredRound(part.excerpt, part.scored_tokens, part.divergences[model.name])
            for part in result.rounds
        )
        yield (
            next(it for it in models if it.name == model.name),
            QualityMeasurement(measured_at, ground, model.divergence.perplexity, model.divergence, rounds),
        )
