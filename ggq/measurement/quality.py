"""How much worse a quantized model talks than its base: perplexity, and the divergence from the base.

Every figure is llama-perplexity's own. They are taken in rounds, on excerpts that all models share, until
there are enough of them; ``pooling`` puts the rounds together.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ggq.errors import CannotServe, GgqError, GgufProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array
from ggq.llamacpp import perplexity, special_logits, text_tokens, tools
from ggq.llamacpp.logits_file import LogitsFile
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.perplexity import Divergence, Estimate, Evaluation
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import aggregate, excerpts
from ggq.measurement import ranking as sequential
from ggq.measurement import transformers_perplexity as reference
from ggq.measurement.aggregate import ModelQuality, Round
from ggq.measurement.excerpts import Base, Excerpt, Excerpts
from ggq.measurement.model_file import Subject
from ggq.measurement.ranking import Comparison
from ggq.measurement.transformers_perplexity import ReferencePerplexity
from ggq.progress import Listener, Notice, Step, silent
from ggq.records.journal import Journal
from ggq.system import files, hardware, texts
from ggq.system.texts import Text

STEP = "quality"
# Fewer rounds settle nothing: divergences have heavy tails, which few rounds may not have met.
_LEAST_ROUNDS = 8
# Of a single model its mean KLD is wanted to such a share.
_PRECISION = 0.1

Stopped = Literal["settled", "cap", "end of text", "as asked"]


@dataclass(frozen=True)
class QualitySettings:
    """How quality is measured.

    ``until``: "ranked" measures random excerpts until the presets' order is settled, up to ``max_chunks``;
    "chunks" the first ``chunks``; "full" the whole text; of a single model "ranked" settles its mean KLD to
    ± 10 %. ``indifference``: differences of mean KLD below it
    (nats per token) need no order; ``error_rate``: of the whole ranking; ``max_base_bytes``: of disk for the
    base's logits at a time; ``seed``: of the excerpts' order; ``checkpoint``: what the base was converted
    from, to be evaluated on the same tokens by transformers; ``parse_special``: the names of special
    tokens in the text stand for them.
    """

    until: Literal["ranked", "chunks", "full"] = "ranked"
    context: int = 512
    chunks: int | None = None
    max_chunks: int = 256
    indifference: float = 0.001
    error_rate: float = 0.05
    max_base_bytes: int = 4_000_000_000
    threads: int | None = None
    offload: Offload = field(default_factory=Offload)
    seed: int = 1
    checkpoint: Path | None = None
    parse_special: bool = False


@dataclass(frozen=True)
class ModelFailure:
    """A model that could not be measured to the end (or ``reference``: the checkpoint), and why."""

    name: str
    what: str
    why: str
    next_step: str


@dataclass(frozen=True)
class QualityResult:
    """``ranking``: neighbours by mean KLD and whether their order is settled; ``text_tokens``: of the whole
    text, of which ``scored_tokens`` were scored; ``stopped``: why no more was measured; ``base_bytes``: what
    the base's logits took on disk at most; ``rounds``: the raw figures; ``reference``: the checkpoint's own
    perplexity on the same tokens, where it was asked for."""

    base: str
    base_perplexity: Estimate
    models: tuple[ModelQuality, ...]
    ranking: tuple[Comparison, ...]
    stopped: Stopped
    text: Text
    context: int
    text_tokens: int
    chunks: int
    scored_tokens: int
    base_bytes: int
    seconds: float
    rounds: tuple[Round, ...]
    settings: QualitySettings
    threads: int
    reference: ReferencePerplexity | None = None
    failures: tuple[ModelFailure, ...] = ()

    @property
    def reference_difference(self) -> float | None:
        """How much higher the base's perplexity is than its checkpoint's, as a share of that."""
        return self.base_perplexity.value / self.reference.value - 1 if self.reference else None


def measure(
    base: Subject,
    models: Sequence[Subject],
    text: Text,
    settings: QualitySettings | None = None,
    *,
    toolchain: Toolchain,
    work: Path,
    journal: Journal | None = None,
    listener: Listener = silent,
) -> QualityResult:
    """Measure models against their base on a text. ``work``: a folder for the base's logits.

    Raises UsageProblem, GgufProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    settings, journal = settings or QualitySettings(), journal or Journal()
    require_comparable(base, models, settings.context)
    if settings.parse_special:
        special_logits.require(settings.offload)
    if settings.checkpoint is not None:
        reference.require(settings.checkpoint, settings.context)
    with files.explain_os_error(work):
        logits = tempfile.TemporaryDirectory(prefix=".ggq-logits-", dir=work)
    with logits as folder:
        return _measure(base, models, text, settings, toolchain, Path(folder), journal, listener)


def _measure(
    base: Subject,
    models: Sequence[Subject],
    text: Text,
    settings: QualitySettings,
    toolchain: Toolchain,
    folder: Path,
    journal: Journal,
    listener: Listener,
) -> QualityResult:
    started = time.monotonic()
    whole = gguf_file.read(base.path)
    placed = texts.place(text, folder / "text")
    ground = Base(
        toolchain=toolchain,
        path=base.path,
        vocabulary_size=whole.vocabulary_size or 0,
        text=placed,
        token_count=text_tokens.count(
            toolchain, whole, text, placed, parse_special=settings.parse_special, listener=listener
        ),
        how=Evaluation(settings.context, settings.threads or hardware.usable_cores(), settings.offload),
        folder=folder,
        parse_special=settings.parse_special,
    )
    plan = _plan(ground, settings)
    _announce(plan, ground, settings, listener)
    rounds = _Rounds(ground, plan, base, models, text, settings, journal, listener)
    stopped = rounds.run()
    found = rounds.done
    failures = list(rounds.failures)
    witness = None
    if settings.checkpoint is not None:
        try:
            witness = _reference(ground, settings.checkpoint, found, listener)
        except GgqError as error:
            failures.append(_failure("reference", error, listener))
    measured = found[0].divergences
    return QualityResult(
        base=base.name,
        base_perplexity=aggregate.perplexity(found, next(iter(measured)), lambda item: item.base_perplexity),
        models=tuple(aggregate.summary(name, found) for name in measured),
        ranking=_ranking(found, settings),
        stopped=stopped,
        text=text,
        context=settings.context,
        text_tokens=ground.token_count,
        chunks=sum(part.excerpt.chunks for part in found),
        scored_tokens=sum(part.scored_tokens for part in found),
        base_bytes=plan.peak_bytes,
        seconds=time.monotonic() - started,
        rounds=tuple(replace(part, tokens=()) for part in found),
        settings=settings,
        threads=ground.how.threads or 0,
        reference=witness,
        failures=tuple(failures),
    )


def _plan(ground: Base, settings: QualitySettings) -> Excerpts:
    if settings.until == "ranked":
        return excerpts.at_random(ground, settings.max_chunks, settings.max_base_bytes, settings.seed)
    chunks = settings.chunks if settings.until == "chunks" else None
    return excerpts.fixed(ground, chunks, settings.max_base_bytes)


def _announce(plan: Excerpts, ground: Base, settings: QualitySettings, listener: Listener) -> None:
    """Say what will lie on the disk, and refuse what would not fit."""
    size = files.human_bytes(plan.peak_bytes)
    listener(Notice(f"The base's logits take {size} of disk at a time, and are removed afterwards."))
    if settings.until == "chunks" and (settings.chunks or 0) > ground.chunk_count:
        listener(Notice(f"The text has {ground.chunk_count} chunks: all of them are measured.", "warning"))
    files.require_space(
        ground.folder, plan.peak_bytes, "the base's logits", "put the record elsewhere with -o/--output"
    )
    if settings.until != "ranked" and isinstance(plan, excerpts.Pieces):
        listener(
            Notice(
                "The logits of the whole text would not fit: it is measured in pieces, whose chunks begin "
                "elsewhere than llama-perplexity's own. Allow more by --max-base-bytes to have those.",
                "warning",
            )
        )


def require_comparable(base: Subject, models: Sequence[Subject], context: int) -> None:
    """Refuse what cannot be compared, before a text is fetched or an hour is spent on it.

    Raises UsageProblem, GgufProblem.
    """
    if not models:
        raise UsageProblem(
            "There is nothing to compare with the base.",
            f"Only {base.path.name} was given.",
            "Name the base and one quantized model or more.",
        )
    ours = gguf_file.read(base.path)
    ours.require_next_tokens("a perplexity", "`ggq bench speed` measures how fast it reads.")
    for subject, gguf in ((base, ours), *((model, gguf_file.read(model.path)) for model in models)):
        if not gguf.tokenizer:
            raise GgufProblem(
                f"{subject.path.name} has no tokenizer.",
                "Without one a text has no tokens.",
                "Convert its checkpoint again, with the tokenizer's files beside it.",
            )
        if (gguf.architecture, gguf.parameter_count) != (ours.architecture, ours.parameter_count):
            raise GgufProblem(
                f"{subject.path.name} was not made from {base.path.name}.",
                f"It is a {gguf.architecture} of {gguf.parameter_count:,} parameters, the base a "
                f"{ours.architecture} of {ours.parameter_count:,}.",
                "Compare a model with the base that it was made from.",
            )
        if _vocabulary(gguf) != _vocabulary(ours):
            raise GgufProblem(
                f"The vocabulary of {subject.path.name} is not that of {base.path.name}.",
                f"They have {gguf.vocabulary_size} and {ours.vocabulary_size} tokens.",
                "Compare a model with the base that it was made from.",
            )
        if subject.context_length and context > subject.context_length:
            raise CannotServe(
                f"A context of {context} tokens is more than {subject.path.name} was made for.",
                f"It was trained with {subject.context_length}.",
                f"Ask for --ctx-size {subject.context_length} or less.",
            )


def _vocabulary(gguf: GgufFile) -> Any:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    return list(tokens) if isinstance(tokens, Array) else None


@dataclass(frozen=True)
class _Ground:
    """What a round's models have in common: the base's tokens, by chunk."""

    scored_tokens: int
    tokens: tuple[tuple[int, ...], ...]


class _Rounds:
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
        ranked = self._settings.until == "ranked"
        for excerpt in self._plan.excerpts:
            self._done.append(self._round(excerpt))
            if ranked and len(self._done) >= _LEAST_ROUNDS and _settled(self.done, self._settings):
                self._progress.end()
                return "settled"
        self._progress.end()
        if not ranked:
            return "as asked"
        chunks = sum(part.excerpt.chunks for part in self._done)
        # The next round would have passed the cap.
        return "cap" if chunks + self._done[-1].excerpt.chunks > self._settings.max_chunks else "end of text"

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
            self.failures.append(_failure(model.name, error, self._listener))
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
        return all(pair.verdict != "unsettled" for pair in _ranking(rounds, settings))
    klds = [part.divergences[names[0]].mean_kld.value for part in rounds]
    interval = sequential.confidence_interval(klds, settings.error_rate)
    return interval.high - interval.low <= 2 * _PRECISION * abs(statistics.fmean(klds))


def _failure(name: str, error: GgqError, listener: Listener) -> ModelFailure:
    listener(Notice(f"{name}: {error}", "warning"))
    return ModelFailure(name, error.what, error.why, error.next_step)


def _reference(
    ground: Base, checkpoint: Path, rounds: Sequence[Round], listener: Listener
) -> ReferencePerplexity:
    chunks = [chunk for part in rounds for chunk in part.tokens]
    bos = tools.bos_token(ground.toolchain, ground.path)
    return reference.perplexity(checkpoint, chunks, bos=bos, threads=ground.how.threads, listener=listener)


def _ranking(rounds: Sequence[Round], settings: QualitySettings) -> tuple[Comparison, ...]:
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
