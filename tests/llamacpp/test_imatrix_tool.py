"""llama-imatrix through its wrapper: stretches are one run, and its failures have words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from disks import tmpfs

from ggq.errors import CannotServe, DiskFull, GgufProblem, ToolFailed
from ggq.gguf import file as gguf_file
from ggq.llamacpp import imatrix, text_tokens
from ggq.llamacpp.imatrix import Settings, Stretch
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import files

pytestmark = pytest.mark.tool

CONTEXT = 64
HOW = Settings(CONTEXT, 1, Offload())


@pytest.fixture
def text(example: Path, tmp_path: Path) -> Path:
    """Some 1,000 tokens; a comma in the folder's name, which the tool would take for the end of it."""
    folder = tmp_path / 'a, "b"'
    folder.mkdir()
    file = folder / "text.txt"
    file.write_text((example / "heldout.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


def add(
    toolchain: Toolchain, model: Path, text: Path, target: Path, *ends: int, how: Settings = HOW
) -> list[int]:
    """Sum up to ``ends``, one after the other; returns the chunks that were told."""
    told: list[int] = []
    sums, done = None, 0
    for end in ends:
        imatrix.add(toolchain, model, text, Stretch(done, end - done, sums), target, how, told.append)
        sums, done = imatrix.read(target), end
    return told


def test_stretches_and_other_threads_make_the_bytes_of_one_run(
    toolchain: Toolchain, base_gguf: Path, text: Path
) -> None:
    once, parts, threads = (text.with_name(name) for name in ("once.gguf", "parts.gguf", "threads.gguf"))
    assert add(toolchain, base_gguf, text, once, 12) == list(range(1, 13))
    assert add(toolchain, base_gguf, text, parts, 1, 4, 12) == list(range(1, 13))
    add(toolchain, base_gguf, text, threads, 12, how=Settings(CONTEXT, 3, Offload()))
    assert files.sha256_file(once) == files.sha256_file(parts) == files.sha256_file(threads)
    made = imatrix.read(once)
    assert (made.chunks, made.context, made.entries, made.text_name) == (12, CONTEXT, 14, "text.txt")
    assert str(text.parent.parent).encode() not in once.read_bytes()


def test_the_last_stretch_may_begin_where_the_tool_lets_it(
    toolchain: Toolchain, base_gguf: Path, text: Path
) -> None:
    whole, left = text.read_text(encoding="utf-8"), {0, 1, CONTEXT - 1}
    target = text.with_name("made.gguf")
    for end in range(1200, 2400):
        text.write_text(whole[:end] + "\n", encoding="utf-8")
        tokens = len(text_tokens.token_ids(toolchain, base_gguf, text))
        if tokens % CONTEXT in left:
            left.remove(tokens % CONTEXT)
            last = imatrix.last_start(tokens, CONTEXT)
            add(toolchain, base_gguf, text, target, last, tokens // CONTEXT)
            sums = imatrix.read(target)
            assert sums.chunks == tokens // CONTEXT
            with pytest.raises(ToolFailed) as caught:
                beyond = Stretch(last + 1, 1, sums)
                imatrix.add(toolchain, base_gguf, text, beyond, target, HOW, lambda chunks: None)
            assert "not enough tokens" in caught.value.why
        if not left:
            return
    pytest.fail(f"no text with {left} tokens beyond its chunks")


def test_too_short_a_text_is_said_with_the_numbers(toolchain: Toolchain, base_gguf: Path, text: Path) -> None:
    text.write_text("Once upon a time", encoding="utf-8")
    tokens = len(text_tokens.token_ids(toolchain, base_gguf, text))
    with pytest.raises(CannotServe, match="too short") as caught:
        add(toolchain, base_gguf, text, text.with_name("made.gguf"), 2)
    assert caught.value.why == f"It has {tokens} tokens; 128 are needed, two chunks of 64."


def test_a_nan_among_the_weights_is_found_out(toolchain: Toolchain, base_gguf: Path, text: Path) -> None:
    broken = text.with_name("broken.gguf")
    shutil.copyfile(base_gguf, broken)
    (tensor,) = (it for it in gguf_file.read(broken).tensors if it.name == "blk.0.attn_v.weight")
    with broken.open("r+b") as stream:
        stream.seek(tensor.offset_bytes)
        stream.write(b"\xc0\x7f")  # a NaN in BF16
    with pytest.raises(GgufProblem, match="no imatrix") as caught:
        add(toolchain, broken, text, text.with_name("made.gguf"), 2)
    assert "blk.0.attn_output.weight is not a number" in caught.value.why


def test_a_full_disk_is_no_success(toolchain: Toolchain, base_gguf: Path, text: Path) -> None:
    """The tool exits 0."""
    with (
        tmpfs(text.with_name("small"), "size=12k") as small,
        pytest.raises(DiskFull, match="could not be written"),
    ):
        add(toolchain, base_gguf, text, small / "made.gguf", 2)


def test_a_file_that_is_no_model_is_refused_in_the_tools_words(toolchain: Toolchain, text: Path) -> None:
    text.with_name("none.gguf").write_bytes(b"GGUF")
    with pytest.raises(ToolFailed, match="failed to load model"):
        add(toolchain, text.with_name("none.gguf"), text, text.with_name("made.gguf"), 2)
