"""The frame of a .bin file: nothing that grows when it is read gets as far as torch."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from ggq.checkpoint import torch_archive
from ggq.errors import CheckpointProblem


def archive(file: Path, *members: tuple[str, bytes], packed: bool = False) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as stream:
        for name, content in members:
            stream.writestr(name, content)
    return file


@pytest.mark.torch
def test_what_torch_writes_is_let_through(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1000)}, tmp_path / "pytorch_model.bin")
    torch_archive.check(tmp_path / "pytorch_model.bin")


def test_packed_members(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.bin", ("a/data.pkl", b"\0" * (8 << 20)), packed=True)
    with pytest.raises(CheckpointProblem, match=r"packed.*8,388,608"):
        torch_archive.check(file)


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.bin", *((f"a/{index}", b"x" * 1000) for index in range(3)))
    raw = bytearray(file.read_bytes())
    at = 0
    for _ in range(2):  # all entries of the table point to the first member's data
        at = raw.find(b"PK\x01\x02", at + 4)
        struct.pack_into("<II", raw, at + 20, 100_000, 100_000)
    file.write_bytes(raw)
    with pytest.raises(CheckpointProblem, match="announce"):
        torch_archive.check(file)


@pytest.mark.parametrize("keep", [0, 4, 100, 1000])
def test_truncated(tmp_path: Path, keep: int) -> None:
    file = archive(tmp_path / "x.bin", ("a/data.pkl", b"x" * 2000))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointProblem):
        torch_archive.check(file)


def test_a_table_of_contents_without_end(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.bin", ("a/data.pkl", b"x" * 2000))
    raw = bytearray(file.read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x05\x06") + 12, 0xFFFFFFFE)
    file.write_bytes(raw)
    with pytest.raises(CheckpointProblem, match="table of contents"):
        torch_archive.check(file)


def test_a_bare_pickle_is_left_to_the_converter(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x80\x02}q\x00.")
    torch_archive.check(tmp_path / "x.bin")
