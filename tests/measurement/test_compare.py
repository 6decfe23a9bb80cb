"""Two records side by side: what belongs together, what can be compared, and what is noise."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measured
import pytest
from click.testing import CliRunner, Result
from measured import Timed

from ggq.cli.main import cli
from ggq.errors import OutputProblem, UsageProblem
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement import quality_record
from ggq.measurement.compare import Difference, compare, machines, unmatched
from ggq.measurement.noise import quantile
from ggq.measurement.quality_record import QualityMeasurement
from ggq.measurement.record import Entry, Measurements, load
from ggq.measurement.throughput import rate

BASE, SMALL, LARGE = (
    measured.subject("BF16", 16_000_000),
    measured.subject("Q2_K", 3_000_000),
    measured.subject("Q8_0", 9_000_000),
)
ELSEWHERE = replace(measured.ENVIRONMENT, cpu="Another CPU")
_paths = itertools.count()


@pytest.fixture
def record(tmp_path: Path) -> Any:
    """Makes a record and returns its entries."""

    def make(**content: Any) -> tuple[Entry, ...]:
        content.setdefault("models", [BASE, SMALL, LARGE])
        return measured.record(tmp_path / f"{next(_paths)}.json", **content)

    return make


def only(differences: tuple[Difference, ...], figure: str, name: str = "Q2_K") -> Difference:
    (found,) = [it for it in differences if it.figure == figure and it.name == name]
    return found


def speeds(*batches: list[float], name: str = "Q2_K", **options: Any) -> dict[str, Any]:
    return {"speeds": {name: measured.speed(name, [Timed("generation", 64, batches)], **options)}}


# ---- what belongs together -------------------------------------------------------------------------------


def test_files_are_matched_by_digest_then_by_name(record: Any) -> None:
    again = measured.subject("Q2_K", 3_100_000, content="with an imatrix")
    qualities = measured.quality({"Q2_K": [0.1] * 8, "Q8_0": [0.001] * 8})
    one = record(qualities=qualities)
    other = record(models=[BASE, again], qualities=measured.quality({"Q2_K": [0.09] * 8}))
    found = compare(one, other)
    assert only(found, "file_bytes", "BF16").matched_by == "sha256"
    size = only(found, "file_bytes")
    assert (size.matched_by, size.beyond_noise) == ("file_name", True)
    assert size.ratio == pytest.approx(3.1 / 3)
    assert not [it for it in found if it.name == "Q8_0"]
    left, right = unmatched(one, other)
    assert [entry.model.name for entry in left] == ["Q8_0"] and not right


def test_two_files_of_one_name_are_not_mixed_up(record: Any) -> None:
    """Two models' Q2_K in a record: neither is known to be the other record's."""
    twice = [measured.subject("Q2_K", content=content) for content in "ab"]
    one = record(models=[BASE, *twice], **speeds([9.0]))
    other = record(models=[BASE, SMALL], **speeds([9.0]))
    assert compare(one, other) == ()
    assert [len(part) for part in unmatched(one, other)] == [2, 1]


def test_what_one_record_lacks_has_no_ratio(record: Any) -> None:
    one = record(**speeds([20.0, 20.1]))
    other = record(memories={"Q2_K": measured.memory("Q2_K", {512: 40_000_000})})
    found = compare(one, other)
    speed, ram = only(found, "generation_tokens_per_s"), only(found, "ram_bytes")
    assert speed.one and speed.other is None and ram.one is None and ram.other == Estimate(40_000_000)
    assert {(it.ratio, it.noise, it.beyond_noise, it.note) for it in (speed, ram)} == {(None, None, None, "")}
    assert {it.figure for it in found} == {"file_bytes", "generation_tokens_per_s", "ram_bytes"}


# ---- quality ---------------------------------------------------------------------------------------------


def test_the_same_excerpts_are_compared_in_pairs(record: Any) -> None:
    """The text's own spread, which hides this difference, is in both."""
    levels = [0.05, 0.2, 0.1, 0.4, 0.15, 0.3, 0.25, 0.08]
    again = [level * factor for level, factor in zip(levels, [0.93, 0.95] * 4, strict=True)]
    one, other = (record(qualities=measured.quality({"Q2_K": klds})) for klds in (levels, again))
    kld, perplexity = (only(compare(one, other), name) for name in ("mean_kld", "perplexity"))
    assert kld.one is not None and kld.other is not None and kld.one.standard_error is not None
    assert kld.ratio == pytest.approx(0.94, abs=0.01)
    assert kld.noise is not None and kld.noise < 0.3 * kld.one.standard_error
    assert kld.beyond_noise is True
    assert perplexity.one is not None and perplexity.one.standard_error is not None
    assert perplexity.noise is not None and perplexity.noise < 0.1 * perplexity.one.standard_error
    assert perplexity.beyond_noise is True
    assert only(compare(one, one), "mean_kld").beyond_noise is False


def test_other_pieces_of_the_text_are_not_compared(record: Any) -> None:
    one = record(qualities=measured.quality({"Q2_K": [0.10, 0.14] * 4}))
    other = record(qualities=measured.quality({"Q2_K": [0.11, 0.15] * 6}))
    found = compare(one, other)
    for figure, name in (("mean_kld", "Q2_K"), ("perplexity", "Q2_K"), ("perplexity", "BF16")):
        held = only(found, figure, name)
        assert held.one and held.other and held.ratio is held.noise is held.beyond_noise is None
        assert held.note == "measured on different pieces of the text, 16 and 24 chunks"


def test_few_rounds_have_the_errors_of_their_tokens(record: Any) -> None:
    """Which are of so many tokens that the normal distribution's quantile holds."""
    one = record(qualities=measured.quality({"Q2_K": [0.10, 0.14]}))
    other = record(qualities=measured.quality({"Q2_K": [0.11, 0.15]}))
    kld = only(compare(one, other), "mean_kld")
    assert kld.one is not None and kld.other is not None and kld.noise is not None
    assert kld.one.standard_error is not None and kld.other.standard_error is not None
    assert kld.noise == pytest.approx(1.959964 * math.hypot(kld.one.standard_error, kld.other.standard_error))


@pytest.mark.parametrize(
    ("changes", "words"), [({"text": "wiki.test.raw"}, "different texts"), ({"context": 256}, "contexts")]
)
def test_quality_on_other_ground_is_not_compared(record: Any, changes: dict[str, Any], words: str) -> None:
    klds = {"Q2_K": [0.1] * 8}
    found = compare(
        record(qualities=measured.quality(klds)), record(qualities=measured.quality(klds, **changes))
    )
    for figure in ("perplexity", "mean_kld", "same_top"):
        held = only(found, figure)
        assert held.one and held.other and held.ratio is held.beyond_noise is None
        assert words in held.note


def test_a_divergence_from_another_base_is_not_compared(record: Any) -> None:
    qualities = measured.quality({"Q2_K": [0.1] * 8})
    other_base = measured.subject("BF16", content="of another checkpoint")
    found = compare(record(qualities=qualities), record(models=[other_base, SMALL], qualities=qualities))
    assert "different 16-bit GGUFs" in only(found, "mean_kld").note
    assert only(found, "mean_kld").ratio is None
    assert only(found, "perplexity").ratio == pytest.approx(1)


def test_a_figure_without_an_error_leaves_the_noise_unknown(record: Any) -> None:
    one, other = (record(qualities=measured.quality({"Q2_K": [kld]})) for kld in (0.1, 0.2))
    kld = only(compare(one, other), "mean_kld")
    assert kld.ratio == pytest.approx(2) and kld.noise is kld.beyond_noise is None


# ---- speed -----------------------------------------------------------------------------------------------


def test_a_steady_difference_of_speed_is_beyond_noise(record: Any) -> None:
    one, other = record(**speeds([20.0, 20.1], [20.1, 20.0])), record(**speeds([22.0, 22.1], [22.1, 22.0]))
    held = only(compare(one, other), "generation_tokens_per_s")
    assert held.ratio == pytest.approx(22.05 / 20.05)
    assert held.beyond_noise is True and not held.note


def test_processes_that_differ_widen_the_noise(record: Any) -> None:
    """Twenty repetitions in two processes: many, but a third process would again be another one."""
    one = record(**speeds([20.0, 20.1] * 5, [22.0, 22.1] * 5))
    other = record(**speeds([23.0, 23.1] * 5, [23.1, 23.0] * 5))
    held = only(compare(one, other), "generation_tokens_per_s")
    # The first one's spread is nearly all of it: Welch's degrees are little more than one.
    assert held.noise is not None and held.noise > 12 * 1.4
    assert held.beyond_noise is False


def test_a_single_repetition_says_nothing_of_noise(record: Any) -> None:
    held = only(compare(record(**speeds([20.0])), record(**speeds([40.0]))), "generation_tokens_per_s")
    assert held.ratio == pytest.approx(2) and held.beyond_noise is None


def test_speeds_are_compared_at_the_same_point(record: Any) -> None:
    def at(*timed: Timed) -> tuple[Entry, ...]:
        made: tuple[Entry, ...] = record(speeds={"Q2_K": measured.speed("Q2_K", timed)})
        return made

    short, long = Timed("prompt", 128, [[300.0, 301.0]]), Timed("prompt", 512, [[200.0, 201.0]])
    deep = Timed("prompt", 512, [[90.0, 91.0]], depth_tokens=4096)
    held = only(compare(at(short, long), at(long, deep)), "prompt_tokens_per_s")
    assert held.ratio == pytest.approx(1)
    held = only(compare(at(short), at(deep)), "prompt_tokens_per_s")
    assert held.one and held.other and held.ratio is None
    assert held.note == "measured with pp128 and pp512 @ d4096"


def test_what_else_differs_is_said(record: Any) -> None:
    on_gpu = Timed("generation", 64, [[90.0, 91.0]], n_gpu_layers=4)
    one = record(**speeds([20.0, 20.1]))
    other = record(speeds={"Q2_K": measured.speed("Q2_K", [on_gpu], type_k="q8_0")})
    held = only(compare(one, other), "generation_tokens_per_s")
    assert held.ratio == pytest.approx(90.5 / 20.05)
    assert held.note == "layers on GPUs: 0 and 4; type of the cache: f16/f16 and q8_0/f16"


# ---- how often chance is called a difference -------------------------------------------------------------

RUNS = 1000


def false_alarms(figure: str, pairs: Iterable[tuple[Measurements, Measurements]]) -> float:
    """The share of pairs of measurements, which differ by chance alone, whose difference is beyond noise."""
    found = [
        only(
            compare(*([Entry(SMALL.recorded, measured.ENVIRONMENT, "", it)] for it in pair)), figure
        ).beyond_noise
        for pair in pairs
    ]
    assert None not in found and len(found) == RUNS
    return sum(map(bool, found)) / RUNS


def qualities(noise: random.Random, rounds: int) -> Iterator[tuple[Measurements, Measurements]]:
    """Of two models that are as good as each other: texts are hard or easy for both, and each scatters."""
    result = measured.quality({"Q2_K": [0.1] * rounds})
    _, (_, template) = quality_record.measurements(result, BASE, [SMALL], measured.MEASURED_AT)
    assert template.divergence is not None

    def measurement(values: list[float]) -> QualityMeasurement:
        error = statistics.stdev(values) / math.sqrt(rounds)
        parts = tuple(
            replace(part, divergence=replace(part.divergence, mean_kld=Estimate(value)))
            for part, value in zip(template.rounds, values, strict=True)
        )
        mean = Estimate(statistics.fmean(values), error)
        return replace(template, divergence=replace(template.divergence, mean_kld=mean), rounds=parts)  # type: ignore[type-var]

    for _ in range(RUNS):
        hard = [noise.gauss(1, 0.2) for _ in range(rounds)]
        one, other = ([0.1 * level + noise.gauss(0, 0.002) for level in hard] for _ in range(2))
        yield Measurements(quality=measurement(one)), Measurements(quality=measurement(other))


def test_chance_is_called_a_difference_of_quality_once_in_twenty() -> None:
    found = false_alarms("mean_kld", qualities(random.Random(3), 8))
    assert found == pytest.approx(0.05, abs=0.02)


def sittings(
    noise: random.Random, batches: int, deviation: float
) -> Iterator[tuple[Measurements, Measurements]]:
    """Two of one file: each differs from the other as one of its processes from the next, by 5 %, whose
    repetitions differ by ``deviation``."""
    template = measured.speed("Q2_K", [Timed("generation", 64, [[100.0]])])

    def sitting() -> Measurements:
        level = noise.gauss(100, 5)
        processes = [noise.gauss(level, 5) for _ in range(batches)]
        times = [[int(64e9 / noise.gauss(mean, 100 * deviation)) for _ in range(3)] for mean in processes]
        figure = replace(template.figures[0], speed=rate(64, times))
        return Measurements(speed=replace(template, figures=(figure,)))

    for _ in range(RUNS):
        yield sitting(), sitting()


@pytest.mark.parametrize("batches", [2, 3])
@pytest.mark.parametrize("deviation", [0.01, 0.05])
def test_chance_is_called_a_difference_of_speed_once_in_twenty(batches: int, deviation: float) -> None:
    """Or a little less often: Welch's degrees, guessed from few processes, err on the careful side."""
    found = false_alarms("generation_tokens_per_s", sittings(random.Random(4), batches, deviation))
    assert 0.02 < found < 0.065


@pytest.mark.parametrize("freedom", [1, 1.3, 1.7, 2, 2.5, 4, 7, 9.5, 10, 14, 30, 200])
def test_quantiles(freedom: float) -> None:
    """Against the distribution: with t = root(v) tan(a), its density is proportional to cos(a)^(v - 1)."""
    import numpy as np

    angles = np.linspace(0, math.atan(quantile(freedom) / math.sqrt(freedom)), 2001)
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    beyond = 1 - float(np.trapezoid(np.cos(angles) ** (freedom - 1), angles)) / whole
    assert beyond == pytest.approx(0.05, rel=1e-4)
    assert quantile(math.inf) == pytest.approx(1.959964)


# ---- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one_bytes", "other_bytes", "beyond"),
    [
        (20_000_000, 28_000_000, False),  # 8 MiB
        (20_000_000, 29_000_000, True),
        (4_000_000_000, 4_035_000_000, False),  # 1 %
        (4_000_000_000, 4_045_000_000, True),
    ],
)
def test_memory_wavers_by_a_percent_or_8_mib(
    record: Any, one_bytes: int, other_bytes: int, beyond: bool
) -> None:
    one, other = (
        record(memories={"Q2_K": measured.memory("Q2_K", {512: count}, vram_bytes=count)})
        for count in (one_bytes, other_bytes)
    )
    for figure in ("ram_bytes", "vram_bytes"):
        assert only(compare(one, other), figure).beyond_noise is beyond


def test_memory_is_compared_at_the_same_context(record: Any) -> None:
    one = record(memories={"Q2_K": measured.memory("Q2_K", {512: 50_000_000, 4096: 90_000_000})})
    other = record(memories={"Q2_K": measured.memory("Q2_K", {4096: 90_000_000})})
    assert only(compare(one, other), "ram_bytes").ratio == 1
    third = record(memories={"Q2_K": measured.memory("Q2_K", {128: 40_000_000})})
    held = only(compare(other, third), "ram_bytes")
    assert held.ratio is None and "context 4096" in held.note and "context 128" in held.note


# ---- records on the disk ---------------------------------------------------------------------------------


def test_a_record_is_named_by_its_file_or_folder(tmp_path: Path) -> None:
    made = measured.record(tmp_path / "ggq-bench.json", models=[BASE, SMALL], **speeds([9.0]))
    assert load(tmp_path) == load(tmp_path / "ggq-bench.json") == made


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, UsageProblem, "no record"),
        ('{"schema_version": 1, "kind": "ggq-bench", "entries": []}', UsageProblem, "no measurement"),
        ('{"schema_version": 1, "kind": "manifest"}', OutputProblem, "not a record"),
        ("[1, 2]", OutputProblem, "not a record"),
        ("GGUF\x00", OutputProblem, "not a record"),
    ],
)
def test_what_is_no_record_is_refused(
    content: str | None, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "ggq-bench.json").write_text(content)
    with pytest.raises(kind, match=words):
        load(tmp_path)


def test_machines_are_chosen(record: Any, tmp_path: Path) -> None:
    here = measured.record(tmp_path / "a.json", models=[BASE, SMALL], **speeds([9.0]))
    both = measured.record(tmp_path / "a.json", models=[BASE, SMALL], **speeds([8.0]), environment=ELSEWHERE)
    first, second = (entry.environment_id for entry in both)
    assert machines(here, here) == (first, first)
    assert machines(here, both) == (first, first)
    assert machines(here, both, [second[:6]]) == (first, second)
    assert machines(both, both, [first, second]) == (first, second)
    stamped = [
        replace(it, measurements=Measurements(speed=replace(it.measurements.speed, measured_at=when)))  # type: ignore[type-var]
        for it, when in zip(both, ("2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"), strict=True)
    ]
    assert machines(stamped, both) == (first, first)
    with pytest.raises(UsageProblem, match=first):
        machines(both, both, ["nothing"])
    with pytest.raises(UsageProblem):
        machines(here, here, ["nothing"])


# ---- the command -----------------------------------------------------------------------------------------


def ggq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bench", "compare", *map(str, arguments)])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders: the same Q2_K, another Q8_0, a Q6_K that only the second has."""
    again = measured.subject("Q8_0", 9_100_000, content="again")
    models = ([BASE, SMALL, LARGE], [BASE, SMALL, again, measured.subject("Q6_K", 7_000_000)])
    texts = ("heldout.txt", "wiki.test.raw")
    folders = (tmp_path / "a", tmp_path / "b")
    for folder, each, text, factor in zip(folders, models, texts, (1.0, 1.5), strict=True):
        folder.mkdir()
        names = [model.name for model in each[1:]]
        measured.record(
            folder / "ggq-bench.json",
            models=each,
            qualities=measured.quality({name: [0.1, 0.12] * 4 for name in names}, text=text),
            speeds={
                name: measured.speed(
                    name,
                    [
                        Timed("prompt", 512, [[12345 * factor, 12300 * factor], [12310 * factor]]),
                        Timed("generation", 64, [[57.2 * factor, 57.3 * factor], [57.1 * factor]]),
                    ],
                )
                for name in names
            },
            memories={name: measured.memory(name, {512: 40_000_000}, 7_000_000) for name in names},
            environment=measured.ENVIRONMENT if folder.name == "a" else ELSEWHERE,
        )
    return folders


def test_the_table_fits_80_columns_and_explains_itself(pair: tuple[Path, Path]) -> None:
    shown = ggq(*pair)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    table = lines[3 : lines.index("", 3)]
    assert table[0].startswith("preset") and len(table) > 12
    assert max(map(len, table)) <= 80
    assert "A CPU, 8 cores" in lines[0] and "Another CPU" in lines[1]
    (speed,) = [line.split() for line in lines if "generate t/s" in line][:1]
    assert speed[-2:] == ["×1.500", "yes"]
    assert "different texts" in shown.stdout and "heldout.txt (" in shown.stdout
    assert "PPL, KLD, top-1 % of" in shown.stdout
    assert "these files differ: Q8_0." in shown.stdout
    assert "Only in B: Q6_K." in shown.stdout
    assert sum("file size" in line for line in lines) == 1, "sizes that are the same say nothing"


def test_for_programs(pair: tuple[Path, Path]) -> None:
    shown = ggq(*pair, "--json")
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout)
    assert value["a"]["environment"]["cpu"] == "A CPU"
    assert value["only_in_b"][0]["name"] == "Q6_K" and value["only_in_a"] == []
    assert {it["figure"] for it in value["differences"]} >= {"file_bytes", "mean_kld", "ram_bytes"}
    assert all(set(it) >= {"one", "other", "ratio", "beyond_noise"} for it in value["differences"])


def test_several_machines_are_told_apart(pair: tuple[Path, Path]) -> None:
    a, b = pair
    both = measured.record(
        a / "ggq-bench.json", models=[BASE, SMALL], **speeds([70.0]), environment=ELSEWHERE
    )
    first, second = dict.fromkeys(entry.environment_id for entry in both)
    shown = ggq(a, b)
    assert f"A holds 2 machines; this is {second}" in shown.stderr and "--machine" in shown.stderr
    chosen = ggq(a, a, "--machine", first[:8], "--machine", second)
    assert chosen.exit_code == 0 and "holds 2" not in chosen.stderr
    assert first in chosen.stdout and second in chosen.stdout
    assert ggq(a, b, "--machine", "zz").exit_code == 2
    assert ggq(a, b, *(["--machine", first] * 3)).exit_code == 2


def test_problems_have_words(pair: tuple[Path, Path], tmp_path: Path) -> None:
    missing = ggq(pair[0], tmp_path / "nowhere")
    assert missing.exit_code == 2 and "There is no record" in missing.stderr
    foreign = tmp_path / "foreign.json"
    foreign.write_text("{}")
    refused = ggq(pair[0], foreign)
    assert refused.exit_code == 1 and "not a record" in refused.stderr
    measured.record(tmp_path / "c.json", models=[measured.subject("F16"), measured.subject("Q4_0")],
                    **speeds([9.0], name="Q4_0"))  # fmt: skip
    apart = ggq(pair[0], tmp_path / "c.json")
    assert apart.exit_code == 2 and "no file in common" in apart.stderr and "Q4_0" in apart.stderr
    for result in (missing, refused, apart):
        assert "next: " in result.stderr and "Traceback" not in result.output
