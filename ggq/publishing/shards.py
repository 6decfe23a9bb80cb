"""Shards of files that are larger than a repository takes: made once, and not again where it has them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ggq._version import __version__
from ggq.hub.repository import RemoteModel
from ggq.hub.upload import LocalFile
from ggq.llamacpp import gguf_split
from ggq.progress import Notice
from ggq.publishing.release import Quant
from ggq.records.manifest import OutputFile
from ggq.records.memo import Memo
from ggq.session import Session
from ggq.system import files, places


@dataclass(frozen=True)
class _Shards:
    """What a file was split into."""

    shards: tuple[OutputFile, ...]


def is_split_here(quant: Quant, max_bytes: int) -> bool:
    """Whether a file goes up as shards that are still to be made."""
    return len(quant.paths) == 1 and quant.gguf.file_bytes > max_bytes


def place(quant: Quant, max_bytes: int) -> str:
    """Where a preset is in the repository: a file, or the folder of its shards."""
    return quant.stem if len(quant.paths) > 1 or is_split_here(quant, max_bytes) else quant.paths[0].name


def shards(
    quant: Quant, sha256: str, max_bytes: int, work: Path, session: Session, remote: RemoteModel | None
) -> list[LocalFile]:
    """The shards of a file, in ``work``. Where the repository has them all, they are not made again.

    Raises DiskFull, OutputProblem, ToolFailed, ToolchainProblem, UsageProblem for a size below 1 MB.
    """
    folder = work / quant.stem
    question = f"{sha256} {max_bytes}"
    tool = f"ggq {__version__}, llama.cpp {session.toolchain.commit}"
    memo = Memo(places.cache() / "shards.json", {"tool": tool})
    remembered = memo.find(question, _Shards)
    known = [_local(quant, folder, it) for it in remembered.shards] if remembered else []
    if known and all(it.is_in(remote) or _is_whole(it) for it in known):
        return known
    source = quant.paths[0]
    staged = work / f"{quant.stem}{files.STAGING}"
    for left in (folder, staged):
        shutil.rmtree(left, ignore_errors=True)
    files.require_space(work, quant.gguf.file_bytes, f"the shards of {source.name}", "free some space")
    files.make_folder(staged)
    session.listener(Notice(f"{source.name} is split into shards of {files.human_bytes(max_bytes)}."))
    made = gguf_split.split(session.toolchain, source, staged / quant.stem, max_bytes)
    done = tuple(OutputFile.of(it) for it in made)
    staged.replace(folder)
    memo.put(question, _Shards(done))
    memo.save()
    return [_local(quant, folder, it) for it in done]


def _local(quant: Quant, folder: Path, it: OutputFile) -> LocalFile:
    return LocalFile(f"{quant.stem}/{it.name}", folder / it.name, it.file_bytes, it.sha256)


def _is_whole(it: LocalFile) -> bool:
    return (
        it.source.is_file()
        and it.source.stat().st_size == it.file_bytes
        and files.sha256_file(it.source) == it.sha256
    )
