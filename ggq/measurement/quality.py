"""How much worse a quantized model talks than its base: perplexity, and the divergence from the base.

Every figure is llama-perplexity's own. They are taken in rounds, on excerpts that all models share, until
there are enough of them; ``aggregate`` puts the rounds together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import GgqError
from ggq.gguf import file as gguf_file
from ggq.llamacpp import special_logits, text_tokens, tools
from ggq.llamacpp.perplexity import Estimate, Evaluation
from ggq.measurement import aggregate, comparability, excerpts, quality_rounds
from ggq.measurement import transformers_perplexity as reference
from ggq.measurement.aggregate import ModelQuality, Round
from ggq.measurement.excerpts import Base, Excerpts
from ggq.measurement.model_file import Subject
from ggq.measurement.quality_rounds import ModelFailure, Rounds
from ggq.measurement.ranking import Comparison
from ggq.measurement.settings import QualitySettings
from ggq.measurement.transformers_perplexity import ReferencePerplexity
from ggq.measurement.words import Stopped, Until
from ggq.progress import Listener, Notice
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.system import files, hardware, texts
from ggq.system.texts import Text


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
    how: Evaluation
    parse_special: bool = False
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
    session: Session,
    work: Path,
    journal: Journal | None = None,
    parse_special: bool = False,
) -> QualityResult:
    """Measure models against their base on a text. ``work``: a folder for the base's logits;
    ``parse_special``: the names of special tokens in the text stand for them.

    Raises UsageProblem, GgufProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    settings, journal = settings or QualitySettings(), journal or Journal()
    comparability.require(base, models, settings.context)
    how = Evaluation(
        settings.context,
        settings.threads or hardware.usable_cores(),
        settings.placement.offload(session.toolchain),
    )
    if parse_special:
        special_logits.require(how.offload)
    if settings.checkpoint is not None:
        reference.require(settings.checkpoint, settings.context)
    started = time.monotonic()
    with files.explain_os_error(work):
        logits = tempfile.TemporaryDirectory(prefix=".ggq-logits-", dir=work)
    with logits as folder:
        ground = _ground(base, text, how, session, Path(folder), parse_special)
        plan = _plan(ground, settings)
        _announce(plan, ground, settings, session.listener)
        rounds = Rounds(ground, plan, base, models, text, settings, journal, session.listener)
        stopped = rounds.run()
        found = rounds.done
        failures = list(rounds.failures)
        of_checkpoint = None
        if settings.checkpoint is not None:
            try:
                of_checkpoint = _reference(ground, settings.checkpoint, found, session.listener)
            except GgqError as error:
                failures.append(quality_rounds.failure("reference", error, session.listener))
    measured = found[0].divergences
    return QualityResult(
        base=base.name,
        base_perplexity=aggregate.perplexity(found, next(iter(measured)), lambda item: item.base_perplexity),
        models=tuple(aggregate.summary(name, found) for name in measured),
        ranking=quality_rounds.ranking(found, settings),
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
        how=how,
        parse_special=parse_special,
        reference=of_checkpoint,
        failures=tuple(failures),
    )


def _ground(
    base: Subject, text: Text, how: Evaluation, session: Session, folder: Path, parse_special: bool
) -> Base:
    whole = gguf_file.read(base.path)
    placed = texts.place(text, folder / "text")
    tokens = text_tokens.count(
        session.toolchain, whole, text, placed, parse_special=parse_special, listener=session.listener
    )
    return Base(
        toolchain=session.toolchain,
        path=base.path,
        vocabulary_size=whole.vocabulary_size or 0,
        text=placed,
        token_count=tokens,
        how=how,
        folder=folder,
        parse_special=parse_special,
    )


def _plan(ground: Base, settings: QualitySettings) -> Excerpts:
    if settings.until is Until.RANKED:
        return excerpts.at_random(ground, settings.max_chunks, settings.max_base_bytes, settings.seed)
    return excerpts.fixed(ground, settings.chunks, settings.max_base_bytes)


def _announce(plan: Excerpts, ground: Base, settings: QualitySettings, listener: Listener) -> None:
    """Say what will lie on the disk, and refuse what would not fit."""
    size = files.human_bytes(plan.peak_bytes)
    listener(Notice(f"The 16-bit GGUF's logits take {size} of disk at a time, and are removed afterwards."))
    if (settings.chunks or 0) > ground.chunk_count:
        listener(Notice(f"The text has {ground.chunk_count} chunks: all of them are measured.", "warning"))
    files.require_space(
        ground.folder,
        plan.peak_bytes,
        "the 16-bit GGUF's logits",
        "put the record elsewhere with -o/--output",
    )
    if settings.until is not Until.RANKED and isinstance(plan, excerpts.Pieces):
        listener(
            Notice(
                "The logits of the whole text would not fit: it is measured in pieces, whose chunks begin "
                "elsewhere than llama-perplexity's own. Allow more by --max-base-bytes to have those.",
                "warning",
            )
        )


def _reference(
    ground: Base, checkpoint: Path, rounds: Sequence[Round], listener: Listener
) -> ReferencePerplexity:
    chunks = [chunk for part in rounds for chunk in part.tokens]
    bos = tools.bos_token(ground.toolchain, ground.path)
    return reference.perplexity(checkpoint, chunks, bos=bos, threads=ground.how.threads, listener=listener)
