"""What an export writes: small texts, links to the model's files, and what a person does with them."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggq.errors import OutputProblem
from ggq.llamacpp import gguf_split
from ggq.progress import Notice
from ggq.serving.parameters import Parameters
from ggq.session import Session
from ggq.system import files

_EXECUTABLE = 0o755


@dataclass(frozen=True)
class Request:
    """What is exported: a model as it was chosen to run. ``name``: what programs call it; ``server``: the
    llama-server of this machine (None: it was not built); ``host``, ``port``: of a server."""

    parameters: Parameters
    name: str
    server: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    publisher: str = "ggq"

    @property
    def model(self) -> Path:
        """The file, or its first shard."""
        return self.parameters.file.path.absolute()

    @property
    def is_split(self) -> bool:
        return len(self.parameters.file.paths) > 1


@dataclass(frozen=True)
class Bundle:
    """``texts``: content by name; ``links``: a file here by the name that it gets; ``merged``: the name of
    the one file that the shards become (empty: they stay as they are); ``executable``: names of programs.

    ``commands``: what to type then; ``remarks``: what the other program cannot do, or needs."""

    folder: Path
    texts: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, Path] = field(default_factory=dict)
    merged: str = ""
    executable: frozenset[str] = frozenset()
    commands: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.texts, *self.links, *([self.merged] if self.merged else []))


def write(bundle: Bundle, request: Request, session: Session, *, force: bool = False) -> tuple[Path, ...]:
    """Write a bundle: each file whole or not at all; what is there already and the same stays.

    Raises OutputProblem for a file that would be overwritten, DiskFull, ToolFailed, ToolchainProblem.
    """
    folder = files.make_folder(bundle.folder)
    for name, text in bundle.texts.items():
        path = folder / name
        if path.exists() and not force and not _holds(path, text):
            raise _in_the_way(path)
    for name, source in bundle.links.items():
        path = folder / name
        if path.exists() and not force and not _same(path, source):
            raise _in_the_way(path)
    if bundle.merged:
        _merge(folder / bundle.merged, request, session, force=force)
    for name, source in bundle.links.items():
        _link(source, folder / name, session)
    for name, text in bundle.texts.items():
        _text(folder / name, text, executable=name in bundle.executable)
    return tuple(folder / name for name in bundle.names)


def _in_the_way(path: Path) -> OutputProblem:
    return OutputProblem(
        f"{path} exists already, with another content.",
        "",
        "Choose another place with -o/--output, or give --force to overwrite it.",
    )


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _same(path: Path, source: Path) -> bool:
    if path.samefile(source):
        return True
    return path.stat().st_size == source.stat().st_size and filecmp.cmp(path, source, shallow=False)


def _text(path: Path, text: str, *, executable: bool) -> None:
    partial = path.with_name(f".{path.name}{files.STAGING}")
    with files.explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            if executable:
                partial.chmod(_EXECUTABLE)
            files.publish(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _link(source: Path, target: Path, session: Session) -> None:
    """The same file under another name; on another disk a link to its path."""
    with files.explain_os_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(source):
            return
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:
            target.symlink_to(source.resolve())
            session.listener(
                Notice(f"{target} is a symbolic link: the disk of {source.parent} is another one.")
            )


def _merge(target: Path, request: Request, session: Session, *, force: bool) -> None:
    """Shards in one file. One that is there with the bytes that it must have is not made again."""
    size = request.parameters.file.file_bytes
    if target.exists() and not force:
        # Headers of the shards are more than the one header.
        if target.is_file() and 0.9 * size < target.stat().st_size <= size:
            return
        raise _in_the_way(target)
    files.require_space(target.parent, size, f"{target.name} as one file")
    session.listener(Notice(f"{len(request.parameters.file.paths)} shards become {target.name}."))
    with files.lock(target.parent), files.staging(target.parent) as staged:
        gguf_split.merge(session.toolchain, request.model, staged / target.name)
        files.publish(staged / target.name, target)
