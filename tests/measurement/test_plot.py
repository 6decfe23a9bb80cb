"""Plots of records: made of what was measured, and fit to be printed."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import measured
import pytest
from measured import Timed

import ggq
from ggq.errors import GgqError, OutputProblem, UsageProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import compare, model_file, plot, quality, record, speed, summary, tables
from ggq.measurement import memory as bench_memory
from ggq.measurement.quality_record import measurements
from ggq.measurement.record import Entry, Record
from ggq.measurement.settings import MemorySettings, QualitySettings, SpeedSettings
from ggq.measurement.throughput import Precision
from ggq.operations.request import Settings
from ggq.records.environment import environment
from ggq.session import Session
from ggq.system import files
from ggq.system.texts import Text

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
SIZES = {"Q2_K": 3_000_000, "Q3_K_M": 4_400_000, "Q4_0": 5_200_000, "Q4_K_M": 5_000_000, "Q8_0": 9_000_000}
KLDS = {"Q2_K": 0.2, "Q3_K_M": 0.04, "Q4_0": 0.02, "Q4_K_M": 0.009, "Q8_0": 0.0003}


@pytest.fixture
def entries(tmp_path: Path) -> tuple[Entry, ...]:
    """Five presets, of which Q4_0 is larger and worse than Q4_K_M; two with a sweep over layers."""
    models = [measured.subject("BF16", 16_900_000), *(measured.subject(*pair) for pair in SIZES.items())]
    sweep = [
        Timed(test, tokens, [[rate * (1 + layers), 1.1 * rate * (1 + layers)]], n_gpu_layers=layers)
        for test, tokens, rate in (("prompt", 512, 1000.0), ("generation", 64, 20.0))
        for layers in (0, 2, 4)
    ]
    deep = Timed("prompt", 512, [[5.0, 6.0]], n_gpu_layers=4, depth_tokens=256)
    return measured.record(
        tmp_path / "ggq-bench.json",
        models=models,
        qualities=measured.quality({name: [kld, 1.2 * kld] * 4 for name, kld in KLDS.items()}),
        speeds={
            "Q2_K": measured.speed("Q2_K", [*sweep, deep]),
            "Q8_0": measured.speed("Q8_0", sweep),
            "Q4_K_M": measured.speed("Q4_K_M", sweep[:1]),
        },
    )


def without(entries: Sequence[Entry], kind: str) -> list[Entry]:
    return [replace(it, measurements=replace(it.measurements, **{kind: None})) for it in entries]


def texts(figure: Any) -> Iterator[Any]:
    from matplotlib.text import Text as Words

    for words in figure.findobj(Words):
        if words.get_visible() and words.get_text():
            yield words


# ---- what is drawn ---------------------------------------------------------------------------------------


@needs_matplotlib
def test_size_against_divergence(entries: tuple[Entry, ...]) -> None:
    figure = plot.draw(without(entries, "speed"))
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert "MB" in axes.get_xlabel() and "nats per token" in axes.get_ylabel()
    lines = {line.get_drawstyle(): line for line in axes.lines}
    front: Any = lines["steps-post"].get_xydata()
    assert [round(size, 1) for size, _ in front] == [3.0, 4.4, 5.0, 9.0]
    assert {note.get_text() for note in axes.texts if note.get_text()} == set(SIZES)
    points = {
        (line.get_marker(), line.get_markerfacecolor()): len(line.get_xdata())
        for line in axes.lines
        if line.get_marker() in ("o", "s")
    }
    assert points == {("o", "black"): 4, ("s", "white"): 1}
    assert len(axes.containers) == 2, "error bars"
    caption = figure.get_supxlabel().replace("\n", " ")
    assert "heldout.txt: 16 chunks of 512 tokens, against BF16 (16.9 MB), on A CPU, 8 cores" in caption


@needs_matplotlib
def test_speed_against_layers(entries: tuple[Entry, ...]) -> None:
    figure = plot.draw(without(entries, "quality"))
    (axes,) = figure.axes
    assert "-ngl" in axes.get_xlabel() and "tokens/s" in axes.get_ylabel()
    looks = [
        (line.get_marker(), line.get_linestyle(), line.get_color())
        for container in cast("list[Any]", axes.containers)
        for line in [container.lines[0]]
    ]
    assert len(looks) == len({look[:2] for look in looks}) == 4, "told apart by colour alone"
    containers: list[Any] = axes.containers
    for container in containers:
        line, _, (bars,) = container.lines
        assert list(line.get_xdata()) == [0, 2, 4]
        for (_, low), (_, high) in bars.get_segments():
            assert high / low == pytest.approx(1.1)
    (legend,) = figure.legends
    assert [label.get_text() for label in legend.get_texts()] == [
        "Q2_K", "Q8_0", "prompt (pp512)", "generation (tg64)",
    ]  # fmt: skip
    assert "Layers are on CUDA0 (A GPU)" in figure.get_supxlabel()


@needs_matplotlib
def test_both_stand_side_by_side(entries: tuple[Entry, ...]) -> None:
    figure = plot.draw(entries)
    left, right = figure.axes
    assert left.get_position().x1 < right.get_position().x0
    assert figure.get_supxlabel().count("A CPU") == 2


@needs_matplotlib
def test_it_can_be_printed(entries: tuple[Entry, ...]) -> None:
    figure = plot.draw(entries)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    for words in texts(figure):
        assert words.get_fontsize() >= 9, words.get_text()
        assert "mathdefault" not in words.get_text(), "exponents are set smaller"


@needs_matplotlib
def test_nothing_hides_a_name(entries: tuple[Entry, ...]) -> None:
    figure = plot.draw(without(entries, "speed"))
    (axes,) = figure.axes
    boxes = [note.get_window_extent() for note in axes.texts if note.get_text()]
    spots = axes.transData.transform([(SIZES[name] / 1e6, kld.value) for name, kld in klds(entries).items()])
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        assert not any(box.contains(*spot) for spot in spots)
        assert axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1


def klds(entries: Sequence[Entry]) -> dict[str, Any]:
    return {row.name: row.mean_kld for row in summary.rows(entries) if row.mean_kld}


@needs_matplotlib
@pytest.mark.filterwarnings("error")
def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    models = [measured.subject(name) for name in ("BF16", "_a$x^$", "b\x1b[1m", "漢$")]
    entries = measured.record(
        tmp_path / "r.json",
        models=models,
        qualities=measured.quality({it.name: [0.1, 0.2] for it in models[1:3]}),
    )
    figure = plot.draw(entries)
    figure.canvas.draw()
    shown = {words.get_text() for words in texts(figure)}
    assert {r"_a\$x^\$", "b?[1m"} <= shown


@needs_matplotlib
def test_what_has_no_place_is_left_out_and_said(entries: tuple[Entry, ...], tmp_path: Path) -> None:
    """A divergence of 0 has no logarithm, and one on another text no place among these."""
    more = [measured.subject(name, 6_000_000) for name in ("BF16", "Q6_K", "Q5_K_M")]
    elsewhere = measured.record(
        tmp_path / "a.json", models=more, qualities=measured.quality({"Q6_K": [0.1] * 8}, text="other.txt")
    )
    nothing = measured.record(
        tmp_path / "b.json", models=more, qualities=measured.quality({"Q5_K_M": [0.0] * 8})
    )
    drawn = plot.draw([*without(entries, "speed"), *elsewhere, *nothing])
    assert {note.get_text() for note in drawn.axes[0].texts if note.get_text()} == set(SIZES)
    assert "2 files" in drawn.get_supxlabel()


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_matplotlib
@pytest.mark.parametrize("suffix", ["png", "SVG", "pdf"])
def test_the_suffix_is_the_format(suffix: str, entries: tuple[Entry, ...], tmp_path: Path) -> None:
    target = tmp_path / f"out.{suffix}"
    plot.plot(entries, target)
    content = target.read_bytes()
    if suffix == "SVG":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ggq-bench.json", target.name]


@needs_matplotlib
@pytest.mark.parametrize("name", ["out.jpg", "out", "out.png.txt"])
def test_another_suffix_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    for call in (lambda: plot.require(tmp_path / name), lambda: plot.plot([], tmp_path / name)):
        with pytest.raises(UsageProblem, match=r"\.png, \.svg, \.pdf"):
            call()


@needs_matplotlib
def test_where_it_cannot_be_written(entries: tuple[Entry, ...], tmp_path: Path) -> None:
    with pytest.raises(OutputProblem, match="no folder"):
        plot.require(tmp_path / "nowhere" / "out.png")
    (tmp_path / "out.png").mkdir()
    with pytest.raises(OutputProblem):
        plot.plot(entries, tmp_path / "out.png")
    assert (tmp_path / "out.png").is_dir() and len(list(tmp_path.iterdir())) == 2


@needs_matplotlib
def test_nothing_to_draw(entries: tuple[Entry, ...], tmp_path: Path) -> None:
    neither = without(without(entries, "quality"), "speed")
    for content in (neither, []):
        with pytest.raises(UsageProblem, match="nothing to draw"):
            plot.plot(content, tmp_path / "out.png")


def test_without_matplotlib_there_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python marks what it shall not find
    with pytest.raises(GgqError, match="matplotlib") as problem:
        plot.require(tmp_path / "out.png")
    assert problem.value.next_step == "pip install 'ggq[plot]'"


# ---- real measurements -----------------------------------------------------------------------------------


@pytest.mark.tool
def test_real_measurements_are_shown_in_every_form(
    base_gguf: Path, example: Path, toolchain: Toolchain, rpc_server: str, tmp_path: Path
) -> None:
    """From the tools to the record, and from there to the table, the comparison and the plot."""
    made = ggq.quantize(base_gguf, ["Q2_K"], tmp_path / "q", Settings(threads=2))
    base, model = model_file.distinct(map(model_file.of, [base_gguf, made.files[0].paths[0]]))
    path = example / "heldout.txt"
    text = Text(path.name, path, files.sha256_file(path), path.stat().st_size)
    chunks = QualitySettings(chunks=16, context=128, threads=2)
    sweep = SpeedSettings(
        prompt_tokens=(16,), generated_tokens=(4,), n_gpu_layers=(0, 3), rpc=(rpc_server,), binding=False,
        precision=Precision(batch=2, most=4),
    )  # fmt: skip
    load = MemorySettings(contexts=(128,), load_modes=("mmap",))
    found = quality.measure(base, [model], text, chunks, session=Session(toolchain), work=tmp_path)
    fast = speed.measure(model.path, sweep, session=Session(toolchain))
    taken = bench_memory.measure(model.path, load, session=Session(toolchain))
    machine = environment(toolchain)
    written = Record(tmp_path / "ggq-bench.json")
    for measured_model, part in measurements(found, base, [model], measured.MEASURED_AT):
        written.add(measured_model, machine, part)
    written.add(model, machine, fast)
    written.add(model, machine, taken)
    written.save()

    entries = record.load(tmp_path)
    columns, cells, _ = tables.table(summary.rows(entries))
    assert [row[0] for row in cells] == ["BF16", "Q2_K"]
    assert len(columns) == 9, "all but VRAM"
    assert tables.MISSING not in cells[1]
    same = compare.compare(entries, entries)
    assert {it.ratio for it in same} == {1.0}
    assert not any(it.beyond_noise for it in same) and not any(it.note for it in same)
    assert [it.noise for it in same if it.figure == "mean_kld"] == [0.0], "the same excerpts are paired"
    json.dumps([asdict(it) for it in same], allow_nan=False)
    if importlib.util.find_spec("matplotlib"):
        plot.plot(entries, tmp_path / "out.png")
        assert (tmp_path / "out.png").stat().st_size > 10_000
