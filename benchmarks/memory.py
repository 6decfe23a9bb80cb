"""Do llama.cpp's buffers explain the memory that a model really takes?

Models of random weights are made on the spot, quantized to Q4_K_M, and run with a full context. In every cell
the buffers in memory of the process's own must come within 5 % of what was measured, or within 24 MiB: what
is neither is program, vocabulary and graph. The buffers are those that llama.cpp logs as it makes them; the
second bar holds the breakdown against it that is had without loading a weight.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import ggq
from benchmarks.common import RESULTS, Bar, finish, random_llama
from ggq.llamacpp.words import CacheType
from ggq.measurement.memory import MemoryCell, MemoryResult, measure
from ggq.measurement.settings import MemorySettings
from ggq.measurement.words import MeasuredLoadMode
from ggq.session import Session

# Millions of parameters -> width, feed-forward width, layers. Attention is kept narrow: filling 16,384 tokens
# of context costs mostly attention, and with as many heads as usual it would take hours.
SHAPES = {"100": (1536, 4096, 5), "500": (2560, 8192, 7)}
HEADS, HEAD_DIM = 8, 64
CONTEXTS = (512, 4096, 16384)
CACHES = ("f16", "q8_0")
_MIB = 1 << 20


def make(folder: Path, millions: str) -> Path:
    """A model of about so many million parameters, as Q4_K_M."""
    checkpoint = folder / f"random-{millions}m"
    width, ffn, layers = SHAPES[millions]
    parameters = random_llama(
        checkpoint,
        width=width,
        ffn=ffn,
        layers=layers,
        heads=HEADS,
        head_dim=HEAD_DIM,
        context=max(CONTEXTS),
    )
    print(f"{checkpoint.name}: {parameters / 1e6:.0f} M parameters")
    made = ggq.convert_and_quantize(str(checkpoint), ["Q4_K_M"], folder / "made", verify="off")
    shutil.rmtree(checkpoint)
    return made.files[0].paths[0]


def show(cell: MemoryCell) -> None:
    run = cell.measured
    if run is None or run.peaks.anonymous_bytes is None or run.peaks.file_bytes is None:
        raise SystemExit(
            "This system does not tell a process's own memory from its mapped files; Linux does."
        )
    sizes = (
        run.peaks.resident_bytes, run.peaks.file_bytes, run.peaks.anonymous_bytes,
        run.buffers_bytes("own"), cell.predicted_bytes,
    )  # fmt: skip
    print(
        f"{cell.context_tokens:>7} {cell.type_k:<5} {cell.load_mode:<5}"
        + "".join(f"{size / _MIB:>10.1f}" for size in sizes)
        + f"{share(cell, sizes[3]):>8.2f}{share(cell, sizes[4]):>8.2f}{run.seconds:>8.1f}",
        flush=True,
    )


def share(cell: MemoryCell, buffers_bytes: int) -> float:
    """What the buffers leave unexplained, as a share of what may be left."""
    own = (cell.measured.peaks.anonymous_bytes if cell.measured else None) or 0
    return abs(own - buffers_bytes) / max(0.05 * own, 24 * _MIB)


def run(models: list[str], settings: MemorySettings) -> list[MemoryResult]:
    results = []
    for millions in models:
        with tempfile.TemporaryDirectory(dir=RESULTS) as work:
            model = make(Path(work), millions)
            names = ("resident", "file", "own", "buffers", "predicted")
            print(
                "context cache load " + "".join(f"{name:>10}" for name in names) + "   share   share       s"
            )
            results.append(
                measure(model, settings, session=Session(), on_part=lambda part: show(part.cells[-1]))
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--caches", nargs="+", default=list(CACHES))
    parser.add_argument("--load-modes", nargs="+", choices=[*MeasuredLoadMode], default=[*MeasuredLoadMode])
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    settings = MemorySettings(
        contexts=tuple(options.contexts),
        types_k=tuple(map(CacheType, options.caches)),
        load_modes=tuple(map(MeasuredLoadMode, options.load_modes)),
    )
    print("MiB; share: what buffers (then: predicted) leave unexplained, of max(5 %, 24 MiB)")
    results = run(options.models, settings)
    cells = [cell for result in results for cell in result.cells]
    made = [share(cell, cell.explained_bytes or 0) for cell in cells]
    predicted = [share(cell, cell.predicted_bytes) for cell in cells]
    finish(
        "memory",
        {"results": [asdict(result) for result in results]},
        [Bar("unexplained", max(made), 1.0), Bar("unexplained-by-the-estimate", max(predicted), 1.0)],
    )


if __name__ == "__main__":
    main()
