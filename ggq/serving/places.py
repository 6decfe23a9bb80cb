"""Which GGUF files a folder holds, which of them to run, and what lies beside one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggq.errors import DoesNotFit, GgufProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.names import SHARD
from ggq.llamacpp.toolchain import Toolchain
from ggq.serving import parameters
from ggq.serving.settings import LoadSettings

_WIDE_BITS = 15.0  # bits per weight, from which on a file counts as not quantized


def models_in(folder: Path) -> list[GgufFile]:
    """The models that lie in a folder, by name: of a split one its first shard; no projector, imatrix or
    adapter, and nothing that cannot be read."""
    found = []
    for path in sorted(folder.glob("*.gguf")):
        shard = SHARD.fullmatch(path.name)
        if not path.is_file() or (shard and int(shard["index"]) != 1):
            continue
        try:
            found.append(gguf_file.read_model(path))
        except GgufProblem:
            continue
    return found


def best_of(
    toolchain: Toolchain, models: Sequence[GgufFile], settings: LoadSettings | None = None
) -> GgufFile:
    """The one to run: the largest quantized file that fits this machine; else one of 16 bits that does.

    Raises DoesNotFit when none does: the smallest one's figures.
    """
    quantized = [it for it in models if it.bits_per_weight < _WIDE_BITS]
    order = sorted(quantized, key=lambda it: -it.file_bytes)
    order += sorted((it for it in models if it not in quantized), key=lambda it: -it.file_bytes)
    if len(order) == 1:
        return order[0]
    room = parameters.room_now(toolchain)
    problem: DoesNotFit | None = None
    for it in order:
        try:
            parameters.choose(toolchain, it.path, settings, room=room)
        except DoesNotFit as failure:
            problem = failure
            continue
        return it
    assert problem is not None, "one was tried"
    raise problem


def projector_beside(model: GgufFile) -> Path | None:
    """The projector (mmproj) in the model's folder that makes vectors of the model's width; None where there
    is none, or several."""
    width = model.integer(f"{model.architecture}.embedding_length")
    found = []
    for path in sorted(model.path.absolute().parent.glob("*.gguf")):
        if "mmproj" not in path.name.lower():
            continue
        try:
            file = gguf_file.read(path)
        except GgufProblem:
            continue
        made = {file.integer(f"clip.{sense}projection_dim") for sense in ("vision.", "audio.", "")} - {None}
        if file.architecture == "clip" and (not made or width in made):
            found.append(path)
    return found[0] if len(found) == 1 else None
