"""llama-gguf-split: one GGUF in shards, and shards in one GGUF."""

from __future__ import annotations

import re
from pathlib import Path

from ggq.errors import ToolchainProblem, UsageProblem
from ggq.llamacpp import endings
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process

_TOOL = "llama-gguf-split"
_MEGABYTE = 10**6
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.gguf")


def split(toolchain: Toolchain, source: Path, prefix: Path, max_bytes: int) -> tuple[Path, ...]:
    """Write shards of at most ``max_bytes`` of tensors each, ``PREFIX-00001-of-…``, and return them in order.

    A shard holds whole tensors, and so one larger tensor alone. Raises UsageProblem for a size below 1 MB,
    ToolFailed, ToolchainProblem.
    """
    megabytes = max_bytes // _MEGABYTE  # as the tool wants it
    if megabytes < 1:
        raise UsageProblem(f"Shards of {max_bytes} bytes are too small.", "", "Give at least 1M.")
    command: list[str | Path] = [
        toolchain.tool(_TOOL), "--split", "--split-max-size", f"{megabytes}M", source, prefix,
    ]  # fmt: skip
    endings.checked(process.run(command, check=False))
    made = sorted(it for it in prefix.parent.glob("*.gguf") if _SHARD.fullmatch(it.name))
    if not made:
        raise ToolchainProblem(f"{_TOOL} wrote no shards of {source.name}.", "", "Run `ggq doctor`.")
    return tuple(made)


def merge(toolchain: Toolchain, first: Path, target: Path) -> None:
    """Join a split model, by its first shard, into one file. Raises ToolFailed, ToolchainProblem."""
    endings.checked(process.run([toolchain.tool(_TOOL), "--merge", first, target], check=False))
