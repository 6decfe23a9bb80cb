"""A base's imatrix: right, continued to the byte, taken up again, and refused in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ggq
from ggq.cli.main import cli
from ggq.conversion.settings import Verify
from ggq.errors import DiskFull, GgqError, GgufProblem, OutputProblem, ToolchainProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp import imatrix as tool
from ggq.llamacpp import tool_output, tools
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.quantization import calibration, imatrix_file
from ggq.quantization import imatrix as room
from ggq.quantization.imatrix import imatrix
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files, process

pytestmark = pytest.mark.tool

SHORT = ImatrixSettings(chunks=6, context=64)


@pytest.fixture
def text(example: Path, tmp_path: Path) -> Path:
    """Some 1,000 tokens."""
    file = tmp_path / "text.txt"
    file.write_text((example / "heldout.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


@pytest.fixture
def base(base_gguf: Path, tmp_path: Path) -> Path:
    """A base in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    os.link(base_gguf, folder / base_gguf.name)
    return folder / base_gguf.name


def test_its_sums_are_those_of_the_squared_activations(toolchain: Toolchain, base: Path, text: Path) -> None:
    """Of the first layer's, which are computed here: embeddings, normed."""
    made = imatrix(base, SHORT, text=text)
    assert (made.tokens, made.entries, made.partial_entries) == (6 * 64, 14, 0)
    matrix = imatrix_file.read(made.path)
    assert all(_numbers(matrix.file, f"{name}.counts") == [6 * 64] for name in matrix.sums)

    model = gguf_file.read(base)
    command = [toolchain.tool("llama-tokenize"), "-m", base, "-f", text, "--ids", "--no-parse-special"]
    tokens = np.array(tool_output.token_ids(process.run(command).stdout)[: 6 * 64]).reshape(6, 64)  # type: ignore[var-annotated]
    tokens[:, 0] = tools.bos_token(toolchain, base)
    rows = _numbers(model, "token_embd.weight").reshape(-1, 256)[tokens.reshape(-1)]
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    normed *= _numbers(model, "blk.0.attn_norm.weight")
    expected = (normed.astype(np.float64) ** 2).sum(axis=0)
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(_numbers(matrix.file, f"blk.0.{name}.weight.in_sum2"), expected, rtol=1e-4)


def _numbers(file: GgufFile, name: str) -> np.ndarray:
    (tensor,) = (it for it in file.tensors if it.name == name)
    kind = {"F32": "<f4", "BF16": "<u2"}[tensor.type]
    raw = np.fromfile(tensor.path, kind, tensor.elements, offset=tensor.offset_bytes)
    return raw if tensor.type == "F32" else (raw.astype("<u4") << 16).view("<f4")


def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_one_go(
    toolchain: Toolchain, base: Path, example: Path, tmp_path: Path
) -> None:
    text, settings = example / "heldout.txt", ImatrixSettings(chunks=40)
    child = subprocess.Popen(
        [sys.executable, "-m", "ggq", "imatrix", base, "--text", text, "--chunks", "40", "-q"]
    )
    while not (kept := list(base.parent.glob(".*.partial.gguf"))):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = tool.read(kept[0]).chunks
    assert 4 <= done < 40, "the test came too late"
    assert not (base.parent / "tiny-llama-imatrix.gguf").exists()

    steps: list[Event] = []
    # Another work does not go on with it.
    fewer = imatrix(base, ImatrixSettings(chunks=5), text=text, output=base.with_name("fewer.gguf"))
    assert (fewer.resumed_chunks, fewer.chunks) == (0, 5)
    made = imatrix(base, settings, text=text, session=Session(listener=steps.append))
    assert (made.resumed_chunks, made.chunks, made.reused) == (done, 40, False)
    once = tmp_path / "once.gguf"
    how = tool.Settings(512, 2, Offload())
    tool.add(toolchain, base, text, tool.Stretch(0, 40, None), once, how, lambda chunks: None)
    assert files.sha256_file(made.path) == files.sha256_file(once)
    assert sorted(path.name for path in base.parent.iterdir()) == [
        "fewer.gguf", "tiny-llama-BF16.gguf", "tiny-llama-imatrix.gguf", "tiny-llama.ggq.json",
    ]  # fmt: skip


def test_stretches_last_for_about_a_minute_or_for_what_loading_takes() -> None:
    stretch = tool.Stretch(0, 4, None)
    assert room._next_length(stretch, tool.Time(seconds=4.0, chunk_seconds=0.5)) == 120
    assert room._next_length(stretch, tool.Time(seconds=100.0, chunk_seconds=20.0)) == 10
    assert room._next_length(stretch, tool.Time(seconds=800.0, chunk_seconds=200.0)) == 1


def test_the_same_is_not_made_twice_and_another_text_does_not_replace_it(base: Path, text: Path) -> None:
    first = imatrix(base, SHORT, text=text)
    again = imatrix(base, SHORT, text=text)
    assert not first.reused and again.reused and again.path == first.path
    shorter = ImatrixSettings(chunks=3, context=64)
    with pytest.raises(OutputProblem, match="of other settings") as caught:
        imatrix(base, shorter, text=text)
    assert f"chunks {SHORT.chunks}" in caught.value.why
    assert imatrix(base, shorter, text=text, force=True).chunks == 3

    other = text.with_name("other.txt")
    other.write_text(text.read_text(encoding="utf-8")[1000:], encoding="utf-8")
    with pytest.raises(OutputProblem, match="of another text") as caught:
        imatrix(base, SHORT, text=other)
    assert caught.value.why == "It was made from text.txt, not from other.txt."
    assert imatrix(base, SHORT, text=other, force=True).text_name == "other.txt"
    mine = base.with_name("mine.gguf")
    mine.write_text("mine")
    with pytest.raises(OutputProblem, match="exists already"):
        imatrix(base, SHORT, text=text, output=mine)
    assert mine.read_text() == "mine"


def test_experts_that_met_no_token_are_told(
    toolchain: Toolchain, base: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    real = tool.add

    def blind(*arguments: object) -> tool.Time:
        """As a mixture of experts leaves it whose first expert was never chosen."""
        taken: tool.Time = real(*arguments)
        path = arguments[4]
        assert isinstance(path, Path)
        tensor = next(it for it in gguf.GGUFReader(path, "r+").tensors if it.name.endswith(".counts"))
        tensor.data[:] = 0
        return taken

    monkeypatch.setattr(tool, "add", blind)
    told: list[Event] = []
    made = imatrix(
        base, ImatrixSettings(chunks=2, context=64), text=text, session=Session(listener=told.append)
    )
    assert made.partial_entries == 1
    assert any(
        isinstance(it, Notice) and it.level == "warning" and "met 0 of 128 tokens" in it.text for it in told
    )


def test_without_a_text_it_is_one_that_every_python_has(
    base: Path, monkeypatch: pytest.MonkeyPatch, isolated_environment: Path
) -> None:
    found = calibration.read()
    assert found.file_bytes > 300_000 and found.path.is_relative_to(isolated_environment)
    assert calibration.read() == found
    made = imatrix(base, SHORT)
    assert (made.text_sha256, made.text_name) == (found.sha256, found.path.name)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageProblem, match="no text to make"):
        calibration.read()


# ---- auto ------------------------------------------------------------------------------------------------


def test_auto_makes_it_once_for_presets_that_need_it(example: Path, text: Path, tmp_path: Path) -> None:
    command = [
        "convert-and-quantize", str(example), "--outdir", str(tmp_path / "out"), "--verify", "off",
        "--imatrix", "Auto", "--imatrix-text", str(text), "--json", "--preset",
    ]  # fmt: skip
    first = CliRunner().invoke(cli, [*command, "iq2_xs,q4_k_m"])
    assert first.exit_code == 0, first.output
    made = gguf_file.read(tmp_path / "out" / "tiny-llama-IQ2_XS.gguf")
    assert made.text("quantize.imatrix.dataset") == "text.txt"
    assert made.integer("quantize.imatrix.entries_count") == 14
    matrix = tmp_path / "out" / "tiny-llama-imatrix.gguf"
    before = matrix.stat()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tiny-llama-IQ2_XS.gguf", "tiny-llama-Q4_K_M.gguf", "tiny-llama-imatrix.gguf", "tiny-llama.ggq.json",
    ]  # fmt: skip

    # Neither a base nor a matrix is made for what is there.
    second = CliRunner().invoke(cli, [*command, "iq2_xs"])
    assert [file["reused"] for file in json.loads(second.stdout)["files"]] == [True]
    assert matrix.stat() == before


def test_auto_takes_the_matrix_that_was_made_before(base: Path, text: Path) -> None:
    by_hand = imatrix(base, SHORT, text=text)
    settings = Settings(imatrix="auto", imatrix_text=text)
    made = ggq.quantize(base, ["IQ2_XXS", "Q2_K_S"], None, settings)
    steps = Manifest(made.manifest).steps
    assert [steps[f"quantize {name}"].options["imatrix_sha256"] for name in ("IQ2_XXS", "Q2_K_S")] == [
        files.sha256_file(by_hand.path)
    ] * 2
    assert gguf_file.read(made.files[0].paths[0]).integer("quantize.imatrix.chunks_count") == 6


def test_auto_refuses_before_any_work_what_is_not_its_own(example: Path, text: Path, tmp_path: Path) -> None:
    mine = tmp_path / room.default_name("tiny-llama")
    mine.write_text("mine")
    settings = Settings(verify=Verify.OFF, imatrix="auto", imatrix_text=text)
    with pytest.raises(OutputProblem, match="exists already"):
        ggq.convert_and_quantize(str(example), ["Q4_K_M"], tmp_path, settings)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, text.name}


# ---- what cannot be --------------------------------------------------------------------------------------


def test_a_base_that_cannot_serve_is_refused(base: Path, text: Path) -> None:
    made = ggq.quantize(base, ["Q8_0"]).files[0].paths[0]
    wordless = base.with_name("wordless.gguf")
    _model_without_tokenizer(wordless)
    cases: list[tuple[type[GgqError], str, Path, ImatrixSettings]] = [
        (GgufProblem, "quantized already", made, SHORT),
        (GgufProblem, "has no tokenizer", wordless, SHORT),
        (GgufProblem, "is a folder.*ggq convert", base.parent, SHORT),
        (UsageProblem, "no room for chunks of 1,024", base, ImatrixSettings(context=1024)),
        (UsageProblem, "too short", base, ImatrixSettings(context=8)),
        (UsageProblem, "two chunks of 512", base, ImatrixSettings(context=512)),
    ]
    text.write_text("Too short.", encoding="utf-8")
    for kind, words, given, settings in cases:
        with pytest.raises(kind, match=words):
            imatrix(given, settings, text=text)
    with pytest.raises(UsageProblem, match="overwritten by its matrix"):
        imatrix(base, SHORT, text=text, output=base, force=True)
    assert not list(base.parent.glob("*imatrix*"))


def _model_without_tokenizer(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("v.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_more_chunks_than_there_are_is_said(base: Path, text: Path) -> None:
    told: list[Event] = []
    made = imatrix(
        base, ImatrixSettings(chunks=1000, context=64), text=text, session=Session(listener=told.append)
    )
    assert Notice(f"The text has {made.chunks} chunks: all of them are taken.", "warning") in told


def test_a_disk_without_room_is_refused_beforehand(
    base: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 20_000)
    with pytest.raises(DiskFull, match="not enough disk for the imatrix"):
        imatrix(base, SHORT, text=text)


def test_a_llama_cpp_without_the_tool_leads_to_setup(
    toolchain: Toolchain, base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on PATH, or one named by GGQ_LLAMA_CPP, may be."""
    for name in ("llama-quantize", "llama-tokenize"):
        (tmp_path / name).symlink_to(toolchain.tool(name))
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(tmp_path))
    with pytest.raises(ToolchainProblem, match="llama-imatrix is missing") as caught:
        imatrix(base, SHORT, text=text)
    assert "ggq setup" in caught.value.next_step


# ---- the command -----------------------------------------------------------------------------------------


def test_the_command_says_what_it_made_and_from_what(base: Path, text: Path) -> None:
    command = ["imatrix", str(base), "--text", str(text), "--chunks", "3", "--ctx", "64"]
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.output
    assert "192 tokens in 3 chunks of 64" in shown.stdout
    assert "The imatrix is made from text.txt" in shown.stderr
    assert f"ggq quantize {base} --imatrix" in shown.stderr
    told = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert told["reused"] and told["text_sha256"] == files.sha256_file(text)
    assert Path(told["path"]).name == gguf_names.output_name("tiny-llama", "imatrix")


def test_the_text_of_auto_is_of_no_use_without_it(base: Path, text: Path) -> None:
    refused = CliRunner().invoke(cli, ["quantize", str(base), "--imatrix-text", str(text)])
    assert refused.exit_code == 2 and "--imatrix auto" in refused.stderr


def test_a_dry_run_with_auto_says_what_the_sizes_are_of(base: Path, text: Path) -> None:
    command = ["quantize", str(base), "--imatrix", "auto", "--imatrix-text", str(text), "--dry-run"]
    shown = CliRunner().invoke(cli, [*command, "--preset", "iq2_xs"])
    assert shown.exit_code == 0 and "The imatrix is made first" in shown.stderr
    assert "needs an imatrix" not in shown.stderr
    assert [path.name for path in base.parent.iterdir()] == [base.name]
