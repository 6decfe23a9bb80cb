"""Tables of measurements: what a person reads off them, and that 80 columns hold them."""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import measured
import pytest

from ggq.cli.output import Output
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement import summary, tables
from ggq.measurement.summary import Row

K_QUANTS = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
)  # fmt: skip

EMPTY = Row(
    name="Q4_K_M",
    file_name="model-Q4_K_M.gguf",
    sha256="5f29",
    environment_id="90ee68d72e64",
    is_base=False,
    file_bytes=4_920_000_000,
    bits_per_weight=4.8944,
    perplexity=None,
    mean_kld=None,
    same_top=None,
    prompt_tokens_per_s=None,
    generation_tokens_per_s=None,
    ram_bytes=None,
    vram_bytes=None,
)
# Wide cells everywhere: long figures with errors of two digits.
LARGE = replace(
    EMPTY,
    file_bytes=16_123_456_789,
    bits_per_weight=16.0,
    perplexity=Estimate(6.2343, 0.0371),
    mean_kld=Estimate(0.0012345, 0.0000312),
    same_top=Estimate(1.0, 0.0),
    prompt_tokens_per_s=Estimate(12345.0, 1234.5),
    generation_tokens_per_s=Estimate(123.45, 2.345),
    ram_bytes=131_234_567_890,
    vram_bytes=79_876_543_210,
)


def family(**changes: object) -> list[Row]:
    """The base and the ten K-quants, all of them wide."""
    base = replace(LARGE, name="BF16", is_base=True, mean_kld=None, same_top=None)
    return [replace(row, **changes) for row in (base, *(replace(LARGE, name=name) for name in K_QUANTS))]


def shown(rows: Sequence[Row], monkeypatch: pytest.MonkeyPatch, width: int = 80) -> list[str]:
    """The table as a terminal of this width gets it."""
    near, far = pty.openpty()
    with os.fdopen(far, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setenv("COLUMNS", str(width))
        Output().table(*tables.table(rows), compact=True)
    drawn = os.read(near, 1 << 16).decode()
    os.close(near)
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m|\r", "", drawn).splitlines()]


# ---- figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (57.234, 0.912, "57.2±.9"),
        (57.234, 1.412, "57.2±1.4"),
        (57.234, 14.12, "57±14"),
        (12347.0, 123.0, "12350±1%"),
        (123456.0, 1234.0, "1.235e5±1%"),
        (1.2345, 0.0123, "1.23±.01"),
        (123.456, 0.0001, "123.5±.1"),  # never less than the last digit that is shown
        (4.5736, 4.5599, "5±5"),
        (57.234, None, "57.23"),
        (57.234, 0.0, "57.23"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_a_rate_is_shown_as_far_as_its_error_allows(value: float, error: float | None, text: str) -> None:
    assert tables.plus_minus(Estimate(value, error), 2) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.010412, 0.00052, "0.0104±5%"),
        (0.000180875, 0.0000065, "1.81e-4±4%"),
        (0.854, 0.0012, "0.854±1%"),
        (12.3456, 0.5, "12.3±4%"),
        (-0.0000012, 0.0000031, "-1.2e-6±258%"),
        (0.0, 0.0, "0.00"),
        (0.0, 0.001, "0.00"),
        (0.0104, None, "0.0104"),
    ],
)
def test_a_divergence_has_its_error_in_percent(value: float, error: float | None, text: str) -> None:
    assert tables.relative(Estimate(value, error)) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (6.2343, 0.0371, "6.234±.037"),
        (43.5378, 6.451, "43.54±6.5"),
        (33.22, 12.57, "33.22±13"),
        (123456.0, 7890.0, "1.23e5±6%"),
        (6.2343, None, "6.234"),
    ],
)
def test_a_perplexity_keeps_four_digits(value: float, error: float | None, text: str) -> None:
    assert tables.perplexity(Estimate(value, error)) == text


def test_a_share_is_shown_in_percent() -> None:
    assert tables.percent(Estimate(0.98712, 0.003)) == "98.7"
    assert tables.percent(Estimate(0.7748, 0.0501)) == "77"
    assert tables.percent(Estimate(1.0, 0.0)) == "100.0"
    assert {tables.percent(None), tables.perplexity(None), tables.relative(None)} == {tables.MISSING}


def test_names_command_no_terminal() -> None:
    assert tables.printable("a\x1b[31m\nb") == "a?[31m?b"


# ---- the terminal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt_tokens_per_s": Estimate(1234.5, 98.7), "generation_tokens_per_s": Estimate(0.1234, 0.0345)},
        {"prompt_tokens_per_s": Estimate(99994.0, 99999.0), "mean_kld": Estimate(0.000123456, 0.0000016)},
        {"file_bytes": 999_600_000_000, "ram_bytes": 999_600_000, "perplexity": Estimate(1234.56, 123.4)},
    ],
)
def test_ten_columns_fit_80(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = family(**changes)
    lines = shown(rows, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 + 1 + len(rows), "a cell was folded"
    assert lines[:2] == shown(rows, monkeypatch, width=200)[:2], "a column was cut"
    for row, line in zip(rows, lines[3:], strict=True):
        assert len(line.split()) == 10 and line.startswith(row.name)
    assert lines[0].split()[0] == "size" and lines[1].split()[0] == "preset"


def test_a_long_name_folds_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Some-Model-8B-Instruct-Q4_K_M-imatrix"
    lines = shown([replace(LARGE, name=name)], monkeypatch)
    assert "".join(line.split(" ")[0] for line in lines[3:]) == name
    assert len(lines[3].split()) == 10


def test_units_are_those_of_a_column() -> None:
    rows = [
        replace(EMPTY, file_bytes=16_123_456_789, ram_bytes=131_000_000_000),
        replace(EMPTY, file_bytes=512_300_000, ram_bytes=None),
        replace(EMPTY, file_bytes=999_600_000, ram_bytes=5_040_000),
    ]
    columns, cells, right = tables.table(rows)
    assert columns == ["preset", "size\nGB", "bpw", "RAM\nGB"]
    assert [row[1] for row in cells] == ["16.1", "0.512", "1.00"]
    assert [row[3] for row in cells] == ["131", "-", "0.005"]
    assert right == [1, 2, 3]
    assert tables.table([replace(EMPTY, file_bytes=999_600_000)])[0][1] == "size\nGB"
    assert tables.table([replace(EMPTY, file_bytes=999_400_000)])[1][0][1] == "999"


def test_columns_without_a_measurement_are_left_out() -> None:
    assert tables.table([EMPTY])[0] == ["preset", "size\nGB", "bpw"]
    some = tables.table([EMPTY, replace(EMPTY, generation_tokens_per_s=Estimate(57.23, 0.9))])
    assert some[0][3:] == ["generate\nt/s"]
    assert [row[3] for row in some[1]] == ["-", "57.2±.9"]
    assert "VRAM" not in tables.markdown([replace(LARGE, vram_bytes=None)])


def test_without_rows_there_is_a_heading() -> None:
    assert tables.table([])[1] == []
    assert len(tables.markdown([]).splitlines()) == 2
    assert len(tables.csv_text([]).splitlines()) == 1


def test_a_pipe_gets_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(*tables.table(family()), compact=True)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


# ---- pages and programs ----------------------------------------------------------------------------------


def test_markdown_shows_every_error() -> None:
    row = replace(LARGE, name="Q4|K*M", same_top=Estimate(0.98712, 0.0021), mean_kld=Estimate(0.00018, 7e-6))
    lines = tables.markdown([row]).splitlines()
    assert lines[0] == (
        "| preset | size | bpw | PPL | KLD, nats | top-1, % | prompt, t/s | generation, t/s | RAM | VRAM |"
    )
    assert lines[1].split(" | ")[:2] == ["| ---", "---:"]
    assert lines[2] == (
        "| Q4\\|K\\*M | 16.1 GB | 16.00 | 6.234 ± 0.037 | 0.000180 ± 0.000007 | 98.71 ± 0.21 "
        "| 12300 ± 1200 | 123.5 ± 2.3 | 131 GB | 79.9 GB |"
    )


def test_markdown_tells_machines_apart() -> None:
    rows = [EMPTY, replace(EMPTY, environment_id="41c7aa000000")]
    assert tables.markdown(rows).splitlines()[0] == "| preset | machine | size | bpw |"
    assert "machine" not in tables.markdown(rows[:1])


def test_csv_is_exact_and_always_the_same_columns() -> None:
    rows = [replace(LARGE, name='Q4,"K"'), EMPTY]
    full, empty = csv.DictReader(io.StringIO(tables.csv_text(rows)))
    assert full["preset"] == 'Q4,"K"' and full["is_base"] == "false"
    assert float(full["perplexity"]) == 6.2343 and float(full["perplexity_standard_error"]) == 0.0371
    assert float(full["mean_kld_nats"]) == 0.0012345
    assert float(full["prompt_tokens_per_s_standard_error"]) == 1234.5
    assert int(full["vram_bytes"]) == 79_876_543_210
    assert full.keys() == empty.keys()
    assert {empty[name] for name in ("perplexity", "mean_kld_nats_standard_error", "ram_bytes")} == {""}
    assert not tables.csv_text(rows).endswith("\n")


# ---- what a record holds ---------------------------------------------------------------------------------


def test_rows_are_read_off_a_record(tmp_path: Path) -> None:
    base, small, large = (
        measured.subject("BF16", 16_000_000),
        measured.subject("Q2_K", 3_000_000),
        measured.subject("Q8_0", 9_000_000),
    )
    entries = measured.record(
        tmp_path / "r.json",
        models=[base, large, small],
        qualities=measured.quality({"Q8_0": [0.001] * 8, "Q2_K": [0.1, 0.2] * 4}),
        speeds={
            "Q2_K": measured.speed(
                "Q2_K",
                [
                    measured.Timed("prompt", 512, [[100.0, 102.0]]),
                    measured.Timed("prompt", 512, [[400.0, 402.0]], n_gpu_layers=4),
                    measured.Timed("prompt", 512, [[50.0, 51.0]], n_gpu_layers=4, depth_tokens=256),
                    measured.Timed("generation", 64, [[20.0]]),
                ],
            )
        },
        memories={"Q2_K": measured.memory("Q2_K", {256: 40_000_000, 512: 50_000_000}, vram_bytes=7_000_000)},
    )
    rows = summary.rows(entries)
    assert [row.name for row in rows] == ["BF16", "Q2_K", "Q8_0"]
    assert [row.is_base for row in rows] == [True, False, False]
    found = rows[1]
    assert found.mean_kld is not None and found.mean_kld.value == pytest.approx(0.15)
    assert found.prompt_tokens_per_s is not None
    assert found.prompt_tokens_per_s.value == pytest.approx(401)
    assert found.generation_tokens_per_s == Estimate(pytest.approx(20.0), None)
    assert (found.ram_bytes, found.vram_bytes) == (40_000_000, 7_000_000)
    assert len(tables.table(rows)[0]) == 10


def test_the_base_comes_first_also_where_only_its_speed_was_measured(tmp_path: Path) -> None:
    models = [measured.subject("BF16", 16_000_000), measured.subject("Q2_K", 3_000_000)]
    qualities = measured.quality({"Q2_K": [0.1] * 8})
    here = measured.record(tmp_path / "r.json", models=models, qualities=qualities)
    there = measured.record(
        tmp_path / "r.json",
        models=models,
        speeds={"BF16": measured.speed("BF16", [measured.Timed("prompt", 512, [[9.0, 9.1]])])},
        environment=replace(measured.ENVIRONMENT, cpu="Another CPU"),
    )
    assert len(here) == 2 and len(there) == 3
    assert [row.is_base for row in summary.rows(there)] == [True, True, False]
