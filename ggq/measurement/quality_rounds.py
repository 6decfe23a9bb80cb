"""The rounds of a measurement of quality: excerpt after excerpt, until there is enough of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from ggq.errors import GgqError
from ggq.llamacpp import perplexity
from ggq.llamacpp.logits_file import LogitsFile
from ggq.llamacpp.perplexity import Divergence
from ggq.measurement import ranking as sequential
from ggq.measurement.aggregate import Round
from ggq.measurement.excerpts import Base, Excerpt, Excerpts
from ggq.measurement.model_file import Subject
from ggq.measurement.ranking import Comparison, Verdict
from ggq.measurement.settings import QualitySettings
from ggq.measurement.words import Stopped, Until
from ggq.progress import Listener, Notice, Step
from ggq.records.journal import Journal
from ggq.system.codec import Inlined
from ggq.system.texts import Text

STEP = "quality"
# Fewer rounds settle nothing: divergences have heavy tails, which few rounds may not have met.
_LEAST_ROUNDS = 8
# Of a single model its mean KLD is wanted to such a share.
_PRECISION = 0.1


@dataclass(frozen=True)
class ModelFailure:
    """A model that could not be measured to the end (or ``reference``: the checkpoint), and why."""

    name: str
    error: Annotated[GgqError, Inlined()]


@dataclass(frozen=True)
class _Ground:
    """What a round's models have in common: the base's tokens, by chunk."""

    scored_tokens: int
    tokens: tuple[tuple[int, ...], ...]


class Rounds:
    """The rounds of one measurement: those that a broken run left in the journal, then fresh ones."""

    def __init__(
        self,
        ground: Base,
        plan: Excerpts,
        base: Subject,
        models: Sequence[Subject],
        text: Text,
        settings: QualitySettings,
        journal: Journal,
        listener: Listener,
    ) -> None:
        self.failures: list[ModelFailure] = []
        self._done: list[Round] = []
        self._ground = ground
        self._plan = plan
        self._models = list(models)
        self._listener = listener
        self._settings = settings
        self._journal = journal
        self._progress = _Progress(listener, plan, models=len(models))
        self._identity = {
            "kind": STEP,
            "base": base.sha256,
            "text": text.sha256,
            "how": asdict(ground.how),
            "parse_special": ground.parse_special,
            "llama_cpp_commit": ground.toolchain.commit,
        }

    def run(self) -> Stopped:
        """Measure until there is enough. Returns why it was enough. Raises the last model's error when none
        is left."""
        ranked = self._settings.until is Until.RANKED
        for excerpt in self._plan.excerpts:
            self._done.append(self._round(excerpt))
            if ranked and len(self._done) >= _LEAST_ROUNDS and _settled(self.done, self._settings):
                self._progress.end()
                return Stopped.SETTLED
        self._progress.end()
        if not ranked:
            return Stopped.AS_ASKED
        chunks = sum(part.excerpt.chunks for part in self._done)
        # The next round would have passed the cap.
        next_chunks = chunks + self._done[-1].excerpt.chunks
        return Stopped.CAP if next_chunks > self._settings.max_chunks else Stopped.END_OF_TEXT

    @property
    def done(self) -> list[Round]:
        """The rounds, of the models that came through all of them."""
        names = [model.name for model in self._models]
        return [
            replace(part, divergences={name: part.divergences[name] for name in names}) for part in self._done
        ]

    def _round(self, excerpt: Excerpt) -> Round:
        found = {
            model.name: self._journal.get(self._key(excerpt, model.sha256), Divergence)
            for model in self._models
        }
        ground = self._journal.get(self._key(excerpt, "ground"), _Ground)
        missing = [model for model in self._models if found[model.name] is None]
        self._progress.skip(excerpt, len(self._models) - len(missing))
        if missing or ground is None:
            with self._plan.logits(excerpt) as logits:
                self._progress.advance(excerpt)
                ground = _Ground(logits.scored_tokens, tuple(logits.chunks()))
                for model in missing:
                    found[model.name] = self._measure(excerpt, model, logits)
            self._journal.put(self._key(excerpt, "ground"), ground)
        divergences = {name: value for name, value in found.items() if value is not None}
        return Round(excerpt, ground.scored_tokens, divergences, ground.tokens)

    def _measure(self, excerpt: Excerpt, model: Subject, logits: LogitsFile) -> Divergence | None:
        """A model's divergence; one that fails is left out from now on, and the others go on."""
        ground = self._ground
        try:
            found = perplexity.divergence(ground.toolchain, model.path, logits, ground.how)
        except GgqError as error:
            self._models = [other for other in self._models if other is not model]
            if not self._models:
                raise
            self.failures.append(failure(model.name, error, self._listener))
            return None
        self._journal.put(self._key(excerpt, model.sha256), found)
        self._progress.advance(excerpt)
        return found

    def _key(self, excerpt: Excerpt, what: str) -> dict[str, Any]:
        return {**self._identity, "excerpt": asdict(excerpt), "what": what}


def _settled(rounds: Sequence[Round], settings: QualitySettings) -> bool:
    """Whether the order of the models is settled; of a single one, whether its mean KLD is known well."""
    names = list(rounds[0].divergences)
    if len(names) > 1:
        return all(pair.verdict is not Verdict.UNSETTLED for pair in ranking(rounds, settings))
    klds = [part.divergences[names[0]].mean_kld.value for part in rounds]
    interval = sequential.confidence_interval(klds, settings.error_rate)
    return interval.high - interval.low <= 2 * _PRECISION * abs(statistics.fmean(klds))


def failure(name: str, error: GgqError, listener: Listener) -> ModelFailure:
    """Said, and noted."""
    listener(Notice(f"{name}: {error}", "warning"))
    return ModelFailure(name, error)


def ranking(rounds: Sequence[Round], settings: QualitySettings) -> tuple[Comparison, ...]:
    figures = {
        name: [part.divergences[name].mean_kld.value for part in rounds] for name in rounds[0].divergences
    }
    return sequential.compare(figures, indifference=settings.indifference, error_rate=settings.error_rate)


class _Progress:
    """Chunks evaluated, the base's among them, of all that may become necessary."""

    def __init__(self, listener: Listener, plan: Excerpts, models: int) -> None:
        self._listener = listener
        self._runs = models + 1
        self._done = 0
        self._total = self._runs * sum(excerpt.chunks for excerpt in plan.excerpts)

    def advance(self, excerpt: Excerpt, runs: int = 1) -> None:
        self._done += runs * excerpt.chunks
        self._listener(Step(STEP, self._done, self._total, "chunks"))

    def skip(self, excerpt: Excerpt, models: int) -> None:
        """So many models are known on an excerpt already; all of them: the base is not needed either."""
        if models:
            self.advance(excerpt, models + (models == self._runs - 1))

    def end(self) -> None:
        self._listener(Step(STEP, self._done, self._done, "chunks"))
