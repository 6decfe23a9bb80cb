"""Checkpoint to presets with no base GGUF on the disk, against the same by hand: convert, then llama-quantize
once per preset. Once with one preset, once with the ten K-quants.

The two take turns, and the first round (cold caches) is not counted. The conversion is not checked
(`--verify off`), as it is not by hand. Memory is the processes' own, as in benchmarks/pipeline.py; disk is
what the folder of outputs takes while the command runs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import RESULTS, Bar, Watched, finish, random_llama, watch
from ggq.llamacpp import toolchain
from ggq.presets import catalogue
from ggq.system import files

ONE = ("Q4_K_M",)
LIMITS = {"one": 0.90, "ten": 0.50}
_LOOK_S = 0.05


@dataclass(frozen=True)
class Round:
    """``by_hand``: the converter, then llama-quantize by preset; ``disk_ratio``: the most that ggq's folder
    took at any time, over the bytes of its files."""

    by_hand: Sequence[Watched]
    ggq: Watched
    disk_ratio: float

    @property
    def ratio(self) -> float:
        return self.ggq.seconds / sum(part.seconds for part in self.by_hand)

    @property
    def memory_ratio(self) -> float:
        return self.ggq.peak_anonymous_bytes / max(part.peak_anonymous_bytes for part in self.by_hand)


def by_hand(model: Path, names: Sequence[str], folder: Path) -> list[Watched]:
    tools = toolchain.find()
    folder.mkdir()
    base = folder / "base.gguf"
    convert = watch([sys.executable, tools.converter, model, "--outfile", base, "--outtype", "bf16"])
    tool = tools.tool("llama-quantize")
    return [convert, *(watch([tool, base, folder / f"{name}.gguf", name]) for name in names)]


def by_ggq(model: Path, names: Sequence[str], folder: Path) -> tuple[Watched, float]:
    with _disk_peak(folder) as peak:
        ran = watch(
            [sys.executable, "-m", "ggq", "convert-and-quantize", model, "--preset", ",".join(names),
             "--verify", "off", "--outdir", folder]
        )  # fmt: skip
    wanted = sum(path.stat().st_size for path in folder.glob("*.gguf"))
    return ran, peak[0] / wanted


@contextmanager
def _disk_peak(folder: Path) -> Iterator[list[int]]:
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            taken = 0
            for path in folder.rglob("*"):
                with suppress(OSError):  # it is gone already
                    taken += (files.allocated_bytes(path) or 0) if path.is_file() else 0
            peak[0] = max(peak[0], taken)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def compare(model: Path, names: Sequence[str], folder: Path, rounds: int) -> list[Round]:
    """The counted rounds."""
    found = []
    for number in range(rounds + 1):
        hand = by_hand(model, names, folder)
        shutil.rmtree(folder)
        ran, disk_ratio = by_ggq(model, names, folder)
        shutil.rmtree(folder)
        it = Round(hand, ran, disk_ratio)
        print(
            f"round {number}: {len(names)} presets, by hand {sum(part.seconds for part in hand):.1f} s,"
            f" ggq {ran.seconds:.1f} s, ratio {it.ratio:.3f}",
            flush=True,
        )
        if number:
            found.append(it)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--layers", type=int, default=30, help="30 make about 500 M parameters")
    options = parser.parse_args()
    ten = tuple(preset.name for preset in catalogue.load().resolve(["k-quants"]))
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as work:
        model, folder = Path(work) / "random", Path(work) / "out"
        parameters = random_llama(model, width=1024, ffn=4096, layers=options.layers, heads=16)
        print(f"{parameters / 1e6:.0f} M parameters, bf16", flush=True)
        found = {
            "one": compare(model, ONE, folder, options.rounds),
            "ten": compare(model, ten, folder, options.rounds),
        }
    bars = []
    for word, rounds in found.items():
        bars += [
            Bar(f"{word}-wall-ratio", statistics.median(it.ratio for it in rounds), LIMITS[word]),
            Bar(f"{word}-peak-memory-ratio", statistics.median(it.memory_ratio for it in rounds), 1.20),
            Bar(f"{word}-peak-disk-ratio", max(it.disk_ratio for it in rounds), 1.01),
        ]
    rounds_of = {word: [asdict(it) for it in rounds] for word, rounds in found.items()}
    finish("fused", {"parameters": parameters, "rounds": rounds_of}, bars)


if __name__ == "__main__":
    main()
