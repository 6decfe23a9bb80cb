"""`ggq convert-and-quantize` against the same steps by hand, side by side in one run.

By hand: the converter script, then llama-quantize once per preset, as llama.cpp's own documentation has it.
ggq does the same and, beside it, digests every file, checks the conversion against transformers and reads the
results back. The two take turns, and the first round (cold caches) is not counted.

Memory is memory of the processes' own. The pages of files that they map are the system's cache and can be
taken back; that they are not needed is tried by a last run in a control group, in which such pages count too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import RESULTS, Bar, Watched, ends_within, finish, random_llama, watch
from ggq.llamacpp import toolchain

_MEMORY_LIMIT = 1.20  # of the peak by hand
GGQ = Path(sys.executable).with_name("ggq")


def by_hand(model: Path, preset: str, outdir: Path) -> list[Watched]:
    tools = toolchain.find()
    outdir.mkdir()
    base = outdir / "base.gguf"
    return [
        watch([sys.executable, tools.converter, model, "--outfile", base, "--outtype", "bf16"]),
        watch([tools.tool("llama-quantize"), base, outdir / f"{preset}.gguf", preset]),
    ]


def by_ggq(model: Path, preset: str, outdir: Path) -> list[Watched]:
    return [watch(_command(model, preset, outdir))]


def _command(model: Path, preset: str, outdir: Path) -> list[str | Path]:
    return [GGQ, "convert-and-quantize", model, "--preset", preset, "--outdir", outdir]


def _peaks(samples: Mapping[str, Sequence[Sequence[Watched]]], field: str) -> dict[str, float]:
    """Of each way the median over rounds of the highest peak of its steps, in bytes."""
    return {
        name: statistics.median(max(getattr(part, field) for part in parts) for parts in runs)
        for name, runs in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--preset", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=30, help="30 make about 500 M parameters")
    options = parser.parse_args()
    samples: dict[str, list[list[Watched]]] = {"by hand": [], "ggq": []}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as work:
        model = Path(work) / "random-500m"
        parameters = random_llama(model, width=1024, ffn=4096, layers=options.layers, heads=16)
        print(f"{parameters / 1e6:.0f} M parameters, bf16, {options.preset}, {options.rounds} rounds")
        for counted in range(options.rounds + 1):
            for name, run in (("by hand", by_hand), ("ggq", by_ggq)):
                outdir = Path(work) / "out"
                parts = run(model, options.preset, outdir)
                if counted:
                    samples[name].append(parts)
                shutil.rmtree(outdir)
        own = _peaks(samples, "peak_anonymous_bytes")
        limit_bytes = int(_MEMORY_LIMIT * own["by hand"])
        command = _command(model, options.preset, Path(work) / "out")
        within = ends_within(command, limit_bytes)
    seconds = {
        name: [sum(part.seconds for part in parts) for parts in runs] for name, runs in samples.items()
    }
    mapped = _peaks(samples, "peak_pss_bytes")
    print(f"{'':<8} {'median s':>9} {'all rounds, s':<24} {'own MiB':>8} {'with mapped files MiB':>22}")
    for name in samples:
        rounds = " ".join(f"{value:.1f}" for value in seconds[name])
        print(
            f"{name:<8} {statistics.median(seconds[name]):>9.2f} {rounds:<24} {own[name] / 2**20:>8.0f}"
            f" {mapped[name] / 2**20:>22.0f}"
        )
    wall = statistics.median(seconds["ggq"]) / statistics.median(seconds["by hand"])
    tried = {None: "not tried: no control group can be made here", True: "yes", False: "no"}[within]
    print(f"ggq ends within {limit_bytes / 2**20:.0f} MiB of memory in all, file pages counted: {tried}")
    bars = [
        Bar("wall-ratio", wall, 1.10),
        Bar("peak-memory-ratio", own["ggq"] / own["by hand"], _MEMORY_LIMIT),
    ]
    if within is not None:
        bars.append(Bar("fails-within-memory-limit", not within, 0))
    finish(
        "pipeline",
        {
            "parameters": parameters,
            "preset": options.preset,
            "memory_limit_bytes": limit_bytes,
            "ends_within_memory_limit": within,
            "samples": {
                name: [[asdict(part) for part in parts] for parts in runs] for name, runs in samples.items()
            },
        },
        bars,
    )


if __name__ == "__main__":
    main()
