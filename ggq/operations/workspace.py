"""A run over a folder of outputs: its lock, its staging folder, its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from ggq._version import __version__
from ggq.gguf import names as gguf_names
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Notice
from ggq.records.environment import environment
from ggq.records.manifest import Manifest, StepRecord
from ggq.session import Session
from ggq.system import codec, files


def tool_name(toolchain: Toolchain) -> str:
    """What records call that which made a file."""
    return f"ggq {__version__}, llama.cpp {toolchain.commit or 'of unknown commit'}"


def kept_folder(name: str, outdir: Path) -> Path:
    """Where unfinished work of a model waits for the next run."""
    return outdir / f".ggq-sweep-{name}"


class Job(AbstractContextManager["Job"]):
    """One run over one folder. ``staging`` ends with it; ``kept`` is for unfinished work that the next run
    takes up, and is there only when one made it. ``force``: overwrite what is not ours.

    Entering it raises OutputProblem, DiskFull.
    """

    def __init__(self, name: str, outdir: Path, session: Session, *, force: bool) -> None:
        self.name = name
        self.outdir = outdir
        self.kept = kept_folder(name, outdir)
        self.force = force
        self.session = session
        self.tool = tool_name(session.toolchain)

    def __enter__(self) -> Job:
        with ExitStack() as stack:
            stack.enter_context(files.lock(files.make_folder(self.outdir), listener=self.session.listener))
            self.staging = stack.enter_context(files.staging(self.outdir))
            self.manifest = Manifest.of(self.name, self.outdir)
            # For what only the record needs: digests, and the machine, which takes a second to describe.
            self.background = stack.enter_context(ThreadPoolExecutor(max_workers=1))
            self._environment = self.background.submit(environment, self.session.toolchain)
            self._held = stack.pop_all()
        for caveat in self.session.toolchain.caveats:
            self.session.listener(Notice(caveat, "warning"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._held.close()

    def has(self, preset_name: str) -> bool:
        """Whether a preset's file has its name here."""
        return (self.outdir / gguf_names.output_name(self.name, preset_name)).exists()

    def record(self, step: str, record: StepRecord) -> None:
        """Write a finished step down. Raises OutputProblem, DiskFull."""
        self.record_all({step: record})

    def record_all(self, records: Mapping[str, StepRecord]) -> None:
        """Write steps that were finished together down together. Raises OutputProblem, DiskFull."""
        self.manifest.environment = codec.encode(self._environment.result())
        self.manifest.record_all(records)
