"""Records to read, made of the rooms' own dataclasses, so that a key that changes its name shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from ggq.llamacpp.memory import Breakdown, FilledContext
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.perplexity import Divergence, Estimate, Evaluation
from ggq.llamacpp.threads import ThreadChoice
from ggq.measurement.aggregate import ModelQuality, Round
from ggq.measurement.excerpts import Excerpt
from ggq.measurement.memory import MemoryCell, MemoryResult
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.measurement.quality_record import measurements
from ggq.measurement.record import Entry, Record
from ggq.measurement.settings import QualitySettings
from ggq.measurement.speed import SpeedFigure, SpeedResult
from ggq.measurement.throughput import rate
from ggq.measurement.words import Stopped
from ggq.records.environment import Environment
from ggq.system.memory_sampler import GpuPeak, MemoryPeaks
from ggq.system.texts import Text

ENVIRONMENT = Environment("A CPU", usable_cores=8, ram_total_bytes=32 << 30, llama_cpp_commit="0c1e57098")
MEASURED_AT = "2026-01-01T00:00:00Z"


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def subject(name: str, file_bytes: int = 5_000_000, content: str = "") -> Subject:
    """A model by its preset. ``content``: what makes its digest another one."""
    path = Path(f"model-{name}.gguf")
    return Subject(
        name=name,
        file_name=path.name,
        type=name,
        path=path,
        sha256=digest(name + content),
        file_bytes=file_bytes,
        bits_per_weight=file_bytes / 1_000_000,
        parameter_count=8_000_000,
        architecture="llama",
        context_length=512,
    )


def quality(
    klds: Mapping[str, Sequence[float]],
    *,
    text: str = "heldout.txt",
    context: int = 512,
    base_perplexity: float = 30.0,
) -> QualityResult:
    """A result with a round for each number; a model's perplexity is the base's times exp(KLD), and one in
    twenty of its tokens differs for each 0.01."""

    def divergence(kld: float, level: float) -> Divergence:
        return Divergence(
            perplexity=Estimate(level * math.exp(kld), 2.0),
            base_perplexity=Estimate(level, 2.0),
            ln_ppl_ratio=Estimate(kld, 0.01),
            mean_kld=Estimate(kld, kld / 10),
            median_kld=Estimate(kld / 2),
            p99_kld=Estimate(kld * 5),
            max_kld=kld * 20,
            same_top=Estimate(1 - 5 * kld, 0.02),
            rms_dp=Estimate(0.01, 0.001),
        )

    count = len(next(iter(klds.values())))
    # Texts are of uneven difficulty: far more so than models differ.
    levels = [base_perplexity * (1 + 0.3 * math.sin(index)) for index in range(count)]
    rounds = tuple(
        Round(
            Excerpt(2, first_chunk=2 * index),
            510,
            {name: divergence(each[index], levels[index]) for name, each in klds.items()},
        )
        for index in range(count)
    )

    def mean(values: Sequence[float]) -> Estimate:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Estimate(statistics.fmean(values), error)

    def mean_perplexity(values: Sequence[float]) -> Estimate:
        logs = mean([math.log(value) for value in values])
        value = math.exp(logs.value)
        return Estimate(value, None if logs.standard_error is None else value * logs.standard_error)

    models = []
    for name in klds:
        found = [part.divergences[name] for part in rounds]
        models.append(
            ModelQuality(
                name,
                Divergence(
                    perplexity=mean_perplexity([each.perplexity.value for each in found]),
                    base_perplexity=mean_perplexity(levels),
                    ln_ppl_ratio=mean([each.ln_ppl_ratio.value for each in found]),
                    mean_kld=mean([each.mean_kld.value for each in found]),
                    median_kld=mean([each.median_kld.value for each in found]),
                    p99_kld=mean([each.p99_kld.value for each in found]),
                    max_kld=max(each.max_kld for each in found),
                    same_top=mean([each.same_top.value for each in found]),
                    rms_dp=mean([each.rms_dp.value for each in found]),
                ),
            )
        )
    return QualityResult(
        base="BF16",
        base_perplexity=mean_perplexity(levels),
        models=tuple(models),
        ranking=(),
        stopped=Stopped.AS_ASKED,
        text=Text(text, Path(text), digest(text), 100_000),
        context=context,
        text_tokens=25_000,
        chunks=2 * count,
        scored_tokens=510 * count,
        base_bytes=1,
        seconds=1.0,
        rounds=rounds,
        settings=QualitySettings(context=context, chunks=2 * count),
        how=Evaluation(context, 8),
    )


@dataclass(frozen=True)
class Timed:
    """Repetitions, in tokens per second, in batches."""

    test: Literal["prompt", "generation"]
    tokens: int
    batches: Sequence[Sequence[float]]
    n_gpu_layers: int = 0
    depth_tokens: int = 0


def speed(name: str, timed: Sequence[Timed], *, type_k: str = "f16") -> SpeedResult:
    figures = tuple(
        SpeedFigure(
            test=each.test,
            tokens=each.tokens,
            depth_tokens=each.depth_tokens,
            n_gpu_layers=each.n_gpu_layers,
            devices=("CUDA0 (A GPU)",) if each.n_gpu_layers else (),
            threads=8,
            speed=rate(
                each.tokens, [[round(1e9 * each.tokens / speed) for speed in batch] for batch in each.batches]
            ),
            settled=True,
            binding=None,
            arguments=(),
        )
        for each in timed
    )
    return SpeedResult(
        measured_at=MEASURED_AT,
        file=f"model-{name}.gguf",
        preset=name,
        file_bytes=1,
        layer_count=4,
        build_commit="0c1e57098",
        backends="CPU",
        cpu_name="A CPU",
        type_k=type_k,
        type_v="f16",
        flash_attention="auto",
        load_mode="auto",
        n_batch=2048,
        n_ubatch=512,
        threads=ThreadChoice(8, 8),
        figures=figures,
        noise=0.01,
        remarks=(),
        failures=(),
    )


def memory(name: str, peaks: Mapping[int, int], vram_bytes: int | None = None) -> MemoryResult:
    """``peaks``: resident bytes by context."""
    cells = tuple(
        MemoryCell(
            context_tokens=context,
            type_k="f16",
            type_v="f16",
            load_mode="mmap",
            predicted=Breakdown(()),
            predicted_bytes=1,
            batch_logits_bytes=0,
            measured=FilledContext(
                (),
                MemoryPeaks(resident),
                None if vram_bytes is None else (GpuPeak(0, "A GPU", vram_bytes),),
                context - 8,
                8,
                1.0,
            ),
        )
        for context, resident in peaks.items()
    )
    return MemoryResult(MEASURED_AT, f"model-{name}.gguf", 1, 8, Offload(), cells)


def record(
    path: Path,
    *,
    models: Sequence[Subject],
    qualities: QualityResult | None = None,
    speeds: Mapping[str, SpeedResult] | None = None,
    memories: Mapping[str, MemoryResult] | None = None,
    environment: Environment = ENVIRONMENT,
) -> tuple[Entry, ...]:
    """Write a record as ``ggq bench`` does, and read it again. The first model is the base."""
    made = Record(path)
    if qualities is not None:
        for model, measurement in measurements(qualities, models[0], models[1:], MEASURED_AT):
            made.add(model, environment, measurement)
    for model in models:
        for results in (speeds, memories):
            if results and model.name in results:
                made.add(model, environment, results[model.name])
    made.save()
    return Record(path).entries
