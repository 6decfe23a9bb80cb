"""Mutated inputs through every verb, against bars: ``python tests/fuzzing --count 10000 --seed 1``.

A case is made again from its seed and number: ``--seed 1 --only 4711 --keep FOLDER`` shows it. Bars: no
traceback, no catch-all, no abort passed on raw, no partial file, exit codes 0 to 3; at most 5 s of the
processors (three times that by the clock) and 500 MB. A verb that starts torch may take so much more than it
takes for the clean input.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "helpers")]

import cases  # noqa: E402
import runner  # noqa: E402

LIMIT_S = 5.0
LIMIT_BYTES = 500_000_000


@dataclass(frozen=True)
class Verdict:
    index: int
    kind: str
    verb: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    faults: list[str]
    words: str


def judge(
    seed: int, index: int, seeds: cases.Seeds, clean: dict[str, tuple[float, int]], keep: Path | None
) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="ggq-fuzz-", dir=keep))
    try:
        made = cases.case(seed, index, folder, seeds)
        out = runner.run(made.command, folder, made.before)
        seconds, peak = clean.get(f"{made.kind} {made.verb.words}", (0.0, 0))
        faults = out.faults(LIMIT_S + seconds, LIMIT_BYTES + peak)
        words = (out.stderr if faults else b"")[-1500:].decode("utf-8", "replace")
        return Verdict(
            index,
            made.kind,
            made.verb.name,
            out.exit_code,
            out.seconds,
            out.cpu_seconds,
            out.peak_bytes,
            faults,
            words,
        )
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def measure_clean(seeds: cases.Seeds) -> dict[str, tuple[float, int]]:
    """Seconds and bytes that the verbs which start torch take for what is whole."""
    found = {}
    for kind, (_, verbs) in cases.KINDS.items():
        for verb in verbs:
            if verb.slow and kind in ("config", "hub"):
                folder = Path(tempfile.mkdtemp(prefix="ggq-fuzz-"))
                made = cases.case(0, 0, folder, seeds, clean=verb, kind=kind)
                out = runner.run(made.command, folder, made.before)
                assert out.exit_code == 0, (made.command, out.stderr)
                found[f"{kind} {verb.words}"] = (out.cpu_seconds, out.peak_bytes)
                shutil.rmtree(folder)
    for kind in cases.KINDS:
        found |= {
            f"{kind} {key.split(' ', 1)[1]}": it
            for key, it in list(found.items())
            if key.startswith("config")
        }
    return found


def warm() -> None:
    """Import in this process what every fork would import again."""
    for name in (
        "ggq.cli.main",
        *(f"ggq.cli.{verb.replace('-', '_')}" for verb in _verbs()),
        "ggq.hub.download", "ggq.hub.dataset", "huggingface_hub.hf_api", "huggingface_hub.file_download",
        "rich.table", "filelock", "numpy", "psutil", "hubserver", "platformdirs",
    ):  # fmt: skip
        importlib.import_module(name)


def _verbs() -> tuple[str, ...]:
    return tuple(importlib.import_module("ggq.cli.main").VERBS)


def _work(
    arguments: tuple[int, range, cases.Seeds, dict[str, tuple[float, int]], Path | None, float],
) -> list[Verdict]:
    seed, indices, seeds, clean, keep, until = arguments
    warm()
    done = []
    for index in indices:
        if time.time() > until:
            break
        done.append(judge(seed, index, seeds, clean, keep))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="This case alone.")
    parser.add_argument("--keep", type=Path, help="Leave the cases' folders here.")
    parser.add_argument("--jobs", type=int, default=min(4, len(os.sched_getaffinity(0))))
    parser.add_argument("--most-seconds", type=float, default=3600, help="Begin no case after that.")
    parser.add_argument("--quick", action="store_true", help="No case that starts torch, and no record.")
    given = parser.parse_args()
    if given.keep:
        given.keep = given.keep.absolute()
        given.keep.mkdir(parents=True, exist_ok=True)
    if given.quick:
        for kind, (weight, verbs) in cases.KINDS.items():
            cases.KINDS[kind] = (weight, tuple(verb for verb in verbs if not verb.slow))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ggq-fuzz-seeds-") as work:
        seeds = cases.Seeds.made(Path(work) / "seeds")
        warm()
        clean = {} if given.quick else measure_clean(seeds)
        numbers = range(given.only, given.only + 1) if given.only is not None else range(given.count)
        shares = [numbers[share :: given.jobs] for share in range(given.jobs)]
        until = time.time() + given.most_seconds
        jobs = [(given.seed, share, seeds, clean, given.keep, until) for share in shares if share]
        with multiprocessing.get_context("fork").Pool(len(jobs)) as pool:
            verdicts = [it for part in pool.imap_unordered(_work, jobs) for it in part]
    seconds = time.monotonic() - started
    faults = [it for it in verdicts if it.faults]
    for it in sorted(faults, key=lambda it: it.index)[:60]:
        print(f"--- {it.index} {it.kind}: {it.verb}: exit {it.exit_code}, {it.cpu_seconds:.1f} s, "
              f"{it.peak_bytes / 1e6:.0f} MB: {', '.join(it.faults)}\n{it.words}")  # fmt: skip
    report = summary(verdicts, seconds)
    print(
        json.dumps(
            {key: report[key] for key in ("cases", "seconds", "per_kind", "per_verb", "faults")}, indent=1
        )
    )
    if given.quick or given.only is not None:
        sys.exit(bool(faults))
    from benchmarks.common import Bar, finish

    counts = report["faults"]
    bars = [Bar(name, counts.get(name, 0), 0) for name in
            ("traceback", "catch-all", "report this", "raw abort", "terminal escape", "partial file", "hang",
             "no words", "slow", "memory")]  # fmt: skip
    others = sum(number for name, number in counts.items() if name not in {bar.name for bar in bars})
    finish("fuzz", report | {"seed": given.seed}, [*bars, Bar("other exit codes", others, 0),
            Bar("cases not reached", given.count - len(verdicts), 0)])  # fmt: skip


def summary(verdicts: list[Verdict], seconds: float) -> dict[str, Any]:
    """Counts, and the worst cases."""

    def worst(key: str, among: list[Verdict]) -> list[dict[str, Any]]:
        return [_short(it) for it in sorted(among, key=lambda it: -getattr(it, key))[:3]]

    slow = {verb.name for _, verbs in cases.KINDS.values() for verb in verbs if verb.slow}
    quick = [it for it in verdicts if it.verb not in slow or it.kind == "gguf"]
    torch = [it for it in verdicts if it not in quick]
    return {
        "cases": len(verdicts),
        "seconds": round(seconds, 1),
        "limits": {"seconds": LIMIT_S, "bytes": LIMIT_BYTES},
        "per_kind": dict(collections.Counter(it.kind for it in verdicts)),
        "per_verb": dict(collections.Counter(it.verb for it in verdicts)),
        "exit_codes": dict(collections.Counter(it.exit_code for it in verdicts)),
        "faults": dict(collections.Counter(fault for it in verdicts for fault in it.faults)),
        "worst_without_torch": {key: worst(key, quick) for key in ("cpu_seconds", "seconds", "peak_bytes")},
        "worst_with_torch": {key: worst(key, torch) for key in ("cpu_seconds", "seconds", "peak_bytes")},
        "faulty_cases": [_short(it) for it in verdicts if it.faults][:100],
    }


def _short(it: Verdict) -> dict[str, Any]:
    shown = asdict(it)
    del shown["words"]
    return shown | {"seconds": round(it.seconds, 2), "cpu_seconds": round(it.cpu_seconds, 2)}


if __name__ == "__main__":
    main()
