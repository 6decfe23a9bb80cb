"""`--until ranked` against `--full`, side by side in one run: the same order, with a fraction of the tokens.

Ten presets of one checkpoint are ranked by their divergence from the base on WikiText-2, once on random
excerpts until their order is settled, once on the whole text.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ggq
from benchmarks.common import EXAMPLE, RESULTS, ROOT, Bar, finish
from ggq import corpora
from ggq.llamacpp import toolchain
from ggq.measurement import model_file, quality
from ggq.measurement.quality import QualityResult
from ggq.measurement.settings import QualitySettings
from ggq.session import Session

SHARED = ROOT.parent / "shared"


def order(result: QualityResult) -> list[str]:
    return [result.ranking[0].better, *(pair.worse for pair in result.ranking)]


def wrong_pairs(ranked: QualityResult, full: QualityResult, indifference: float) -> list[str]:
    """Neighbours that the short measurement calls ordered, and the whole text orders the other way, by more
    than the indifference."""
    whole = {model.name: model.divergence.mean_kld.value for model in full.models}
    return [
        f"{pair.better} < {pair.worse}"
        for pair in ranked.ranking
        if pair.verdict == "ordered" and whole[pair.better] - whole[pair.worse] > indifference
    ]


def stored(result: QualityResult) -> dict[str, Any]:
    """A result without the folders of this machine."""
    found = asdict(result)
    del found["text"]["path"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    prose = SHARED / "models" / "prose-llama-8m"
    wiki = SHARED / "data" / "wikitext-2" / "wiki.test.raw"
    parser.add_argument("--model", type=Path, default=prose if prose.is_dir() else EXAMPLE)
    parser.add_argument("--text", type=Path, default=wiki if wiki.is_file() else EXAMPLE / "heldout.txt")
    parser.add_argument("--preset", default="k-quants")
    parser.add_argument("--full-chunks", type=int, help="instead of the whole text, for a first try")
    options = parser.parse_args()
    tools = toolchain.find()
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as work:
        folder = Path(work)
        made = ggq.convert_and_quantize(
            str(options.model), [options.preset], folder / "out", keep_base=True, verify="off"
        )
        assert made.base is not None
        base, *models = model_file.distinct(
            map(model_file.of, [made.base, *(file.paths[0] for file in made.files)])
        )
        text = corpora.resolve([], text=options.text)
        ranked_settings = QualitySettings()
        full_settings = replace(
            ranked_settings,
            full=not options.full_chunks,
            chunks=options.full_chunks,
            max_base_bytes=min(ranked_settings.max_base_bytes, shutil.disk_usage(folder).free // 2),
        )
        ranked, full = (
            quality.measure(base, models, text, settings, session=Session(tools), work=folder)
            for settings in (ranked_settings, full_settings)
        )
    print(f"{options.model.name}, {len(models)} presets, {options.text.name}")
    print(f"{'':<14} {'tokens':>9} {'seconds':>8}  order by mean KLD, smallest first")
    for name, result in (("until ranked", ranked), ("whole text", full)):
        tokens = result.chunks * result.context
        print(f"{name:<14} {tokens:>9} {result.seconds:>8.1f}  {' '.join(order(result))}")
    print("stopped: " + ranked.stopped)
    for pair in ranked.ranking:
        print(
            f"  {pair.better} < {pair.worse}: {pair.verdict}, difference {pair.difference:.5f}"
            f" in [{pair.interval.low:.5f}, {pair.interval.high:.5f}]"
        )
    wrong = wrong_pairs(ranked, full, ranked_settings.indifference)
    unsettled = sum(pair.verdict == "unsettled" for pair in ranked.ranking)
    finish(
        "quality",
        {
            "model": options.model.name,
            "text": options.text.name,
            "ranked": stored(ranked),
            "full": stored(full),
            "wrong_pairs": wrong,
        },
        [
            Bar("wrong-pairs", len(wrong), 0),
            Bar("unsettled-pairs", unsettled, 0),
            Bar("token-ratio", ranked.chunks / full.chunks, 0.10),
        ],
    )


if __name__ == "__main__":
    main()
