"""Presets: what ggq ships covers llama-quantize, and a user's file is read strictly."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import pytest

from ggq.errors import UsageProblem
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets import catalogue

MINE = """\
[sources]
notes = "my notes"

[models]
N = { parameters = 1000000000, source = "notes", ppl = 10 }

[groups]
own = ["MINE", "Q4_K_M"]

[preset.MINE]
ftype = "q4_k_m"
bits_per_weight = 5
bits_source = "notes"
summary = "Q4_K_M with attention values at 8 bits."
use = "Tests."
published = { model = "M", source = "notes", mean_kld = 0.1, ppl_of_others = { N = 12, Llama-2-70B = 3.6 } }
tensor_types = { "attn_v" = "q8_0", 'blk\\.[01]\\.' = "Q6_K" }
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(MINE, encoding="utf-8")
    return file


def names(*asked: str, extra: Path | None = None) -> list[str]:
    return [preset.name for preset in catalogue.load(extra).resolve(asked)]


def test_groups() -> None:
    assert names("k-quants") == [
        "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
    ]  # fmt: skip
    assert names("LEGACY") == ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    assert len(names("i-quants")) == 12


def test_names_in_any_case_lists_and_aliases_each_once_in_order() -> None:
    assert names("q8_0", "Q4_K_M,q6_k Q8_0", "q4_k") == ["Q8_0", "Q4_K_M", "Q6_K"]


def test_no_name_is_no_wish() -> None:
    with pytest.raises(UsageProblem, match="No preset is named"):
        names(" ,")


@pytest.mark.parametrize(
    ("asked", "meant"), [("q4km", "Q4_K_M"), ("Q4_K_N", "Q4_K_S"), ("kquants", "k-quants"), ("zzz", None)]
)
def test_an_unknown_name_is_met_with_the_nearest(asked: str, meant: str | None) -> None:
    with pytest.raises(UsageProblem) as raised:
        catalogue.load().resolve([asked])
    assert asked in raised.value.what
    assert raised.value.why == (f"Did you mean {meant}?" if meant else "")
    assert "ggq presets" in raised.value.next_step


def test_published_figures_have_their_sources() -> None:
    for preset in catalogue.load().presets:
        assert preset.name == preset.ftype
        assert preset.summary.endswith(".") and preset.use.endswith(".")
        if preset.name != "COPY":
            assert preset.bits_per_weight and preset.bits_source, preset.name
        if preset.published:
            assert "llama.cpp" in preset.published.source


@pytest.mark.parametrize(
    ("parameters", "model"), [(10**8, "Llama-3-8B"), (8 * 10**9, "Llama-3-8B"), (32 * 10**9, "Llama-2-70B")]
)
def test_published_klds_are_of_the_nearest_size_and_more_bits_lose_less(parameters: int, model: str) -> None:
    every = [preset.published for preset in catalogue.load().resolve(["k-quants"])]
    expected = [it.expected(parameters) for it in every if it]
    assert {it.model for it in expected if it} == {model, "Llama-3-8B"}, (
        "the latter where the other lacks one"
    )
    losses = [it.kld for it in expected if it]
    assert losses == sorted(losses, reverse=True) and len(losses) == 10


def test_the_spread_is_told_with_the_nearest_size_first() -> None:
    (q4,) = catalogue.load().resolve(["q4_k_m"])
    assert q4.published
    small = [it.model for it in q4.published.others(600_000_000)]
    assert small == ["Qwen2-0.5B", "Qwen2-1.5B", "Llama-2-7B", "Llama-2-70B"]
    assert [it.model for it in q4.published.others(70 * 10**9)][:2] == ["Llama-3-8B", "Llama-2-7B"]
    of_qwen = q4.published.others(600_000_000)[0]
    assert of_qwen.of_perplexity and of_qwen.kld == pytest.approx(math.log(15.36 / 15.11))


def test_a_file_of_ones_own(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (preset,) = catalogue.load(mine).resolve(["mine"])
    assert preset.ftype == "Q4_K_M"
    assert preset.bits_per_weight == 5 and preset.bits_source == "my notes"
    assert preset.tensor_types == {"attn_v": "q8_0", r"blk\.[01]\.": "Q6_K"}
    assert preset.published and preset.published.source == "my notes"
    own, of_n, of_llama = preset.published.klds
    assert (own.model, own.kld, own.parameter_count) == ("M", 0.1, None)
    assert (of_n.source, of_n.kld, of_n.of_perplexity) == ("my notes", math.log(1.2), True)
    assert of_llama.parameter_count == 68_976_648_192, "of the models that ggq ships"
    assert not preset.needs_imatrix
    assert names("own", extra=mine) == ["MINE", "Q4_K_M"]
    monkeypatch.setenv("GGQ_PRESETS", str(mine))
    assert names("own") == ["MINE", "Q4_K_M"]
    assert names("own", extra=mine) == ["MINE", "Q4_K_M"], "the same file named twice is read once"


REQUIRED = 'ftype = "Q4_K_M"\nsummary = "s"\nuse = "u"\n'
WRONG = {
    "not TOML": ("[preset.A\n", None, ["not TOML", "line 1"]),
    "unknown table": ("[presets.A]\n", 1, ["presets", "`preset`"]),
    "unknown key": (f"[preset.A]\n{REQUIRED}needs_imatrx = 1\n", 5, ["A.needs_imatrx", "`needs_imatrix`"]),
    "missing key": ('[preset.A]\nftype = "Q4_K_M"\n', 1, ["preset.A", "the key `summary`, a text"]),
    "text for a number": (f'[preset.A]\n{REQUIRED}bits_per_weight = "4"\n', 5, ["a number", "'4'"]),
    "bool for a number": (f"[preset.A]\n{REQUIRED}bits_per_weight = true\n", 5, ["a number"]),
    "number out of range": (f"[preset.A]\n{REQUIRED}bits_per_weight = -1\n", 5, ["above 0"]),
    "number for a bool": (f"[preset.A]\n{REQUIRED}needs_imatrix = 1\n", 5, ["true or false"]),
    "number for a text": ('[preset.A]\nftype = 4\nsummary = "s"\nuse = "u"\n', 2, ["A.ftype", "a text"]),
    "unknown ftype": ('[preset.A]\nftype = "Q4_K_X"\nsummary = "s"\nuse = "u"\n', 2, ["perhaps Q4_K"]),
    "aliases no list": (f'[preset.A]\n{REQUIRED}aliases = "B"\n', 5, ["a list"]),
    "alias no text": (f"[preset.A]\n{REQUIRED}aliases = [1]\n", 5, ["a list of texts"]),
    "preset no table": ("[preset]\nA = 1\n", 2, ["preset.A", "a table"]),
    "taken name": (f"[preset.q4_k_m]\n{REQUIRED}", 1, ["k-quants.toml", "already"]),
    "taken alias": (f'[preset.A]\n{REQUIRED}aliases = ["Q5_K"]\n', 1, ["already", "'Q5_K'"]),
    "taken twice": (f"[preset.A]\n{REQUIRED}[preset.a]\n{REQUIRED}", 5, ["already", "'a'"]),
    "taken by a group": (f'[preset.A]\n{REQUIRED}[groups]\nA = ["A"]\n', 6, ["already"]),
    "name with a slash": (f'[preset."../A"]\n{REQUIRED}', 1, ["letters, digits"]),
    "group of nothing": ('[groups]\ng = ["Q9_K"]\n', 2, ["groups.g", "names of presets", "'Q9_K'"]),
    "group no list": ('[groups]\ng = "Q8_0"\n', 2, ["groups.g", "a list"]),
    "source no text": ("[sources]\nx = 1\n", 2, ["sources.x", "a text"]),
    "unknown source": (f'[preset.A]\n{REQUIRED}bits_source = "x"\n', 5, ["[sources]", "'x'"]),
    "model without parameters": (
        '[sources]\nx = "y"\n[models]\nM = { source = "x" }\n', 4, ["models.M", "the key `parameters`"],
    ),
    "loss of no model": (
        f'[sources]\nx = "y"\n[preset.A]\n{REQUIRED}published = {{ model = "m", source = "x", '
        "mean_kld_of_others = { N = 1 } }\n", 7, ["[models]", "'N'"],
    ),
    "perplexity without that of 16 bits": (
        f'[sources]\nx = "y"\n[preset.A]\n{REQUIRED}published = {{ model = "m", source = "x", '
        'ppl_of_others = { "Llama-3-8B" = 6 } }\n', 7, ["[models] with `ppl`"],
    ),
    "prior without model": (
        f'[sources]\nx = "y"\n[preset.A]\n{REQUIRED}published = {{ source = "x" }}\n', 7, ["`model`"],
    ),
    "prior with another key": (
        f'[preset.A]\n{REQUIRED}published = {{ model = "m", mean_kdl = 1 }}\n', 5, ["`mean_kld`"],
    ),
    "bad pattern": (f'[preset.A]\n{REQUIRED}tensor_types = {{ "(" = "q8_0" }}\n', 5, ["regular expression"]),
    "unknown tensor type": (f'[preset.A]\n{REQUIRED}tensor_types = {{ x = "q9" }}\n', 5, ["a type of ggml"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int | None, words: list[str]
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageProblem) as raised:
        catalogue.load(file)
    said = str(raised.value)
    assert str(file) in raised.value.what
    assert line is None or f"line {line}," in said
    for word in words:
        assert word in said


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        catalogue.load(tmp_path / "absent.toml")
    with pytest.raises(UsageProblem, match="cannot be read"):
        catalogue.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(UsageProblem, match="UTF-8"):
        catalogue.load(tmp_path / "latin.toml")


@pytest.mark.tool
def test_every_type_of_llama_quantize_has_its_preset(toolchain: Toolchain) -> None:
    shown = subprocess.run(
        [toolchain.tool("llama-quantize"), "--help"], capture_output=True, text=True, check=False
    ).stdout
    listed = shown.split("allowed quantization types")[1]
    offered = re.findall(r"^ +(?:\d+ +or +)?(\w+) +: ", listed, re.MULTILINE)
    assert len(offered) > 35
    assert sorted(offered) == sorted(word for preset in catalogue.load().presets for word in preset.words)


@pytest.mark.tool
def test_llama_quantize_wants_an_imatrix_for_the_presets_that_say_so(
    toolchain: Toolchain, base_gguf: Path
) -> None:
    for preset in catalogue.load().presets:
        plan = tools.quantize_plan(toolchain, base_gguf, preset.ftype)
        assert plan.needs_imatrix == preset.needs_imatrix, preset.name
