"""Twelve presets in one sweep against twelve runs of llama-quantize, on a base of random weights.

The two take turns, and the first round (cold caches) is not counted. The sweep is a program of its own here,
from the start of Python to the check of its files; what `ggq quantize` does besides (digests, the record) is
not in it. Memory is the processes' own, as in benchmarks/pipeline.py.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import RESULTS, Bar, Watched, convert_by_hand, finish, random_llama, watch
from ggq.llamacpp import toolchain
from ggq.system import files

PRESETS = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_S", "Q5_K_M", "Q6_K",
    "Q8_0",
)  # fmt: skip
ONE = "Q4_K_M"
THREADS = 2


@dataclass(frozen=True)
class Round:
    """One round. ``by_tool``: llama-quantize by preset; ``twelve`` and ``one``: the sweep over all presets,
    and over ONE; ``disk_ratio``: what its folder takes in the end, over the bytes of its files."""

    by_tool: Mapping[str, Watched]
    twelve: Watched
    one: Watched
    disk_ratio: float

    @property
    def tool_seconds(self) -> float:
        return sum(run.seconds for run in self.by_tool.values())

    @property
    def twelve_ratio(self) -> float:
        return self.twelve.seconds / self.tool_seconds

    @property
    def one_ratio(self) -> float:
        return self.one.seconds / self.by_tool[ONE].seconds

    @property
    def memory_ratio(self) -> float:
        by_sweep = max(self.twelve.peak_anonymous_bytes, self.one.peak_anonymous_bytes)
        return by_sweep / max(run.peak_anonymous_bytes for run in self.by_tool.values())


@dataclass(frozen=True)
class Scale:
    """The sweep over ONE of a model of some size, in some threads: its own seconds, without the start of
    Python, which is the same for all sizes."""

    parameters: int
    threads: int
    seconds: tuple[float, ...]

    @property
    def ns_per_parameter(self) -> float:
        return statistics.median(self.seconds) / self.parameters * 1e9


def make_base(folder: Path, layers: int) -> tuple[Path, int]:
    """A converted model of random weights, and its parameters."""
    checkpoint = folder / "checkpoint"
    parameters = random_llama(checkpoint, width=1024, ffn=4096, layers=layers, heads=16)
    base = folder / f"{layers}-layers.gguf"
    done = convert_by_hand(toolchain.find(), checkpoint, base, "bf16")
    if done.returncode:
        raise done.failed()
    shutil.rmtree(checkpoint)
    return base, parameters


def by_tool(base: Path, preset: str) -> Watched:
    target = base.with_name("by-tool.gguf")
    made = watch([toolchain.find().tool("llama-quantize"), base, target, preset, str(THREADS)])
    target.unlink()
    return made


def by_sweep(base: Path, presets: Sequence[str]) -> tuple[Watched, float]:
    """The run, and the disk that its folder takes in the end over the bytes of the files."""
    folder = base.with_name("by-sweep")
    folder.mkdir()
    made = watch([sys.executable, "-m", "benchmarks.swept", base, folder, str(THREADS), *presets])
    there = list(folder.iterdir())
    taken = sum(files.allocated_bytes(path) or 0 for path in there)
    wanted = sum(path.stat().st_size for path in there if path.suffix == ".gguf")
    shutil.rmtree(folder)
    return made, taken / wanted


def compare(base: Path, rounds: int) -> list[Round]:
    """The counted rounds."""
    found = []
    for number in range(rounds + 1):
        tool = {preset: by_tool(base, preset) for preset in PRESETS}
        twelve, disk_ratio = by_sweep(base, PRESETS)
        one, _ = by_sweep(base, (ONE,))
        it = Round(tool, twelve, one, disk_ratio)
        print(
            f"round {number}: twelve presets {it.tool_seconds:.1f} s and {twelve.seconds:.1f} s,"
            f" {ONE} {tool[ONE].seconds:.1f} s and {one.seconds:.1f} s",
            flush=True,
        )
        if number:
            found.append(it)
    return found


def scale(base: Path, parameters: int, rounds: int) -> list[Scale]:
    found: dict[int, list[float]] = {threads: [] for threads in range(1, THREADS + 1)}
    for _ in range(rounds):
        for threads, seconds in found.items():
            seconds.append(own_seconds(base, threads))
    return [Scale(parameters, threads, tuple(seconds)) for threads, seconds in found.items()]


def own_seconds(base: Path, threads: int) -> float:
    with tempfile.TemporaryDirectory(dir=base.parent) as folder:
        command = [sys.executable, "-m", "benchmarks.swept", str(base), folder, str(threads), ONE]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def flatness(scales: Sequence[Scale]) -> float:
    """The longest time per parameter over the shortest, for the number of threads where that is worst."""
    return max(
        max(times) / min(times)
        for threads in range(1, THREADS + 1)
        if (times := [it.ns_per_parameter for it in scales if it.threads == threads])
    )


def show(rounds: Sequence[Round], scales: Sequence[Scale]) -> None:
    runs = {f"llama-quantize {preset}": [it.by_tool[preset] for it in rounds] for preset in PRESETS}
    runs |= {"sweep, all": [it.twelve for it in rounds], f"sweep, {ONE}": [it.one for it in rounds]}
    print(f"{'':<24} {'median s':>9} {'own MiB':>8} {'with mapped files MiB':>22}")
    for name, its in runs.items():
        seconds = statistics.median(run.seconds for run in its)
        own = statistics.median(run.peak_anonymous_bytes for run in its)
        mapped = statistics.median(run.peak_pss_bytes for run in its)
        print(f"{name:<24} {seconds:>9.1f} {own / 2**20:>8.0f} {mapped / 2**20:>22.0f}")
    print(f"{'parameters':>10} {'threads':>8} {'median s':>9} {'ns per parameter':>17}   (sweep, {ONE})")
    for it in scales:
        print(
            f"{it.parameters / 1e6:>8.0f} M {it.threads:>8} {statistics.median(it.seconds):>9.1f}"
            f" {it.ns_per_parameter:>17.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument(
        "--layers", type=int, default=30, help="of the compared model: 30 make 500 M parameters"
    )
    parser.add_argument(
        "--scaling",
        type=int,
        nargs="*",
        default=[6, 30, 90],
        help="layers: 100 M, 500 M and 1.5 B parameters",
    )
    options = parser.parse_args()
    rounds: list[Round] = []
    scales: list[Scale] = []
    parameters = 0
    RESULTS.mkdir(exist_ok=True)
    for layers in sorted({options.layers, *options.scaling}):
        with tempfile.TemporaryDirectory(dir=RESULTS) as work:
            base, count = make_base(Path(work), layers)
            print(f"{count / 1e6:.0f} M parameters, bf16", flush=True)
            if layers == options.layers:
                parameters = count
                rounds = compare(base, options.rounds)
            if layers in options.scaling:
                scales += scale(base, count, options.rounds)
    show(rounds, scales)
    bars = [
        Bar("twelve-presets-ratio", statistics.median(it.twelve_ratio for it in rounds), 0.55),
        Bar("one-preset-ratio", statistics.median(it.one_ratio for it in rounds), 1.05),
        Bar("peak-memory-ratio", statistics.median(it.memory_ratio for it in rounds), 1.20),
        Bar("disk-ratio", max(it.disk_ratio for it in rounds), 1.01),
    ]
    if scales:
        bars.append(Bar("longest-over-shortest-time-per-parameter", flatness(scales), 1.15))
    finish(
        "sweep",
        {
            "parameters": parameters,
            "presets": PRESETS,
            "threads": THREADS,
            "rounds": [asdict(it) for it in rounds],
            "scaling": [asdict(it) for it in scales],
        },
        bars,
    )


if __name__ == "__main__":
    main()
