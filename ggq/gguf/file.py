"""Reading GGUF files: one, or the shards of one model together."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ggq.errors import GgufProblem
from ggq.gguf import kind as gguf_kind
from ggq.gguf import parse as gguf_parse
from ggq.gguf.header import EMBEDDINGS, OUTPUT, GgufFile, file_types
from ggq.gguf.names import SHARD, shard_name
from ggq.system import untrusted

__all__ = ["EMBEDDINGS", "OUTPUT", "GgufFile", "file_types", "read", "read_all", "read_model", "shards"]


def read(path: Path) -> GgufFile:
    """Read and check a GGUF file's header; its data are only checked to be there.

    Raises GgufProblem: no such file, not a GGUF, a version that is not supported, truncated data,
    lengths that lie, names twice, tensors out of place.
    """
    try:
        with untrusted.open_regular(path) as stream:
            found = gguf_parse.parse(path, stream)
            for end in (found.file_bytes - found.trailing_bytes, found.data_end):
                stream.seek(end)
                if stream.read(4) == gguf_parse.MAGIC:
                    raise gguf_kind.joined(path, end, found.file_bytes)
            return found
    except IsADirectoryError as error:
        raise GgufProblem(
            f"{path} is a folder, not a GGUF file.",
            "",
            f"If it is a checkpoint: `ggq convert {shlex.quote(str(path))}`.",
        ) from error
    except OSError as error:
        raise GgufProblem(
            f"{path} cannot be read.", f"{error.strerror}.", "Check the path and its permissions."
        ) from error


def read_model(path: Path) -> GgufFile:
    """Like ``read_all``, and raises GgufProblem for what is no model."""
    found = read_all(path)
    found.require_model()
    return found


def read_all(path: Path) -> GgufFile:
    """Like ``read``; of a split model all shards, as one: the first one's metadata, all tensors.

    Raises GgufProblem, also for a shard that is missing, or is another one than its name says.
    """
    first, *rest = parts = [read(shard) for shard in shards(path)]
    for index, part in enumerate(parts):
        gguf_kind.require_named_shard(part.path, part.metadata, index, len(parts))
    if not rest:
        return first
    tensors = (*first.tensors, *(tensor for part in rest for tensor in part.tensors))
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    announced = first.integer("split.tensors.count")
    if twice or announced not in (None, len(tensors)):
        raise GgufProblem(
            f"The shards of {path.name} do not belong together.",
            f"{twice[0]!r} is in two of them."
            if twice
            else f"The first one announces {announced} tensors; all together hold {len(tensors)}.",
            "Get all shards again from one source.",
        )
    return replace(
        first,
        paths=tuple(part.path for part in (first, *rest)),
        tensors=tensors,
        file_bytes=sum(part.file_bytes for part in (first, *rest)),
    )


def shards(path: Path) -> list[Path]:
    """All files of the model that ``path`` is, or is a shard of, in order.

    Raises GgufProblem when one is missing.
    """
    match = SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["index"]) <= count:
        raise GgufProblem(
            f"{path.name} is not the name of a shard.",
            f"It says that it is number {int(match['index'])} of {count}.",
            "Rename it as its source names it.",
        )
    files = [path.with_name(shard_name(match["stem"], index + 1, count)) for index in range(count)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise GgufProblem(
            f"{len(missing)} of the {count} shards of {match['stem']} are missing.",
            f"{missing[0].name} is not in {path.absolute().parent}.",
            "Put all shards into one folder.",
        )
    return files
