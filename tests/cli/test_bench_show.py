"""`ggq bench show`: a finished record again, as tables, CSV, JSON and plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ggq.cli.main import cli


@pytest.fixture
def record(data: Path) -> Path:
    return data / "golden" / "bench.json"


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bench", "show", *map(str, arguments)])


def test_the_table_of_a_record(record: Path) -> None:
    shown = show(record)
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines()[-3:]] == ["F32", "Q4_0", "Q8_0"]
    assert "Measured on" in shown.stderr and "llama.cpp 0c1e57098" in shown.stderr


def test_other_forms_are_clean(record: Path, data: Path) -> None:
    listed = show(record, "--csv").stdout
    assert listed == (data / "golden" / "bench.csv").read_text(encoding="utf-8")
    assert [row["preset"] for row in csv.DictReader(io.StringIO(listed))] == ["F32", "Q4_0", "Q8_0"]
    assert show(record, "--markdown").stdout == (data / "golden" / "bench.md").read_text(encoding="utf-8")
    value = json.loads(show(record, "--json").stdout)
    assert value["schema_version"] == 1
    assert value["entries"] == json.loads(json.dumps(value["entries"])) and len(value["entries"]) == 3
    assert value["entries"][1]["measurements"]["quality"]["mean_kld"]["value"] == 0.194586875


def test_a_plot_is_drawn(record: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = show(record, "--plot", tmp_path / "plot.svg")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_what_cannot_be_shown_is_told(record: Path, tmp_path: Path) -> None:
    assert "There is no record" in show(tmp_path).stderr
    assert "No single machine" in show(record, "--machine", "zz").stderr
    broken = tmp_path / "broken.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["entries"][1]["measurements"]["speed"]["figures"][0]["tokens"] = "many"
    broken.write_text(json.dumps(content))
    refused = show(broken)
    assert refused.exit_code == 1 and "Traceback" not in refused.output
    assert "entries[1].measurements.speed.figures[0].tokens" in refused.stderr
