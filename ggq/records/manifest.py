"""What ggq writes down: the manifest of the steps that made a folder of files.

A step is skipped only when its inputs, options and tool are the same as recorded and its outputs still have
the recorded size and digest. A record is written before its outputs get their final names: a kill between the
two leaves a record without a file, which is made again, and never a file that nobody knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.errors import OutputProblem
from ggq.progress import Listener, silent
from ggq.system import codec, files

SCHEMA_VERSION = 1
MANIFEST_SUFFIX = ".ggq.json"
BENCH_RECORD = "ggq-bench.json"


def is_ours(name: str) -> bool:
    """Whether a file of this name in a checkpoint's folder is of ggq's making, and no part of it."""
    return name.lower().endswith((".gguf", MANIFEST_SUFFIX, BENCH_RECORD))


def base_model(base: Path) -> dict[str, str]:
    """What a manifest says of its model where that is a base GGUF of the user's."""
    return {"base": base.name, "folder": str(base.parent.resolve())}


@dataclass(frozen=True)
class OutputFile:
    """A file that a step made: its ``name`` beside the manifest, size and digest."""

    name: str
    file_bytes: int
    sha256: str

    @staticmethod
    def of(path: Path, name: str | None = None, listener: Listener = silent, step: str = "") -> OutputFile:
        digest = files.sha256_file(path, listener, step)
        return OutputFile(name or path.name, path.stat().st_size, digest)

    def is_whole_in(self, folder: Path) -> bool:
        """Whether the file is there with the recorded size and digest."""
        path = folder / self.name
        return (
            path.is_file()
            and path.stat().st_size == self.file_bytes
            and files.sha256_file(path) == self.sha256
        )


@dataclass(frozen=True)
class StepRecord:
    """A finished step. ``inputs``: name -> sha256; ``tool``: what made it, with its commit;
    ``peak_memory_bytes``: of its child process (None: not told); ``findings``: what was checked and seen."""

    inputs: Mapping[str, str]
    options: Mapping[str, Any]
    tool: str
    outputs: tuple[OutputFile, ...]
    seconds: float
    peak_memory_bytes: int | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)

    def same_work(self, inputs: Mapping[str, str], options: Mapping[str, Any], tool: str) -> bool:
        """Whether this is the record of exactly that work."""
        return dict(self.inputs) == dict(inputs) and dict(self.options) == dict(options) and self.tool == tool


@dataclass(frozen=True)
class _Content:
    """A manifest's file. ``superseded``: digests of outputs that a later run replaced: a file that has one of
    them is ours, too; ``chosen_presets``: model -> the preset that ggq chose for it here, which another day
    might be another."""

    schema_version: int
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: Mapping[str, StepRecord]
    superseded: tuple[str, ...]
    chosen_presets: Mapping[str, str] = field(default_factory=dict)


class Manifest:
    """The steps that made the files beside it; one JSON file per model and folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: dict[str, Any] = {}
        self.environment: dict[str, Any] = {}
        self.steps: dict[str, StepRecord] = {}
        self.superseded: list[str] = []
        self.chosen_presets: dict[str, str] = {}
        self.state: bytes | None = None  # the file as it was read
        self._load()

    @classmethod
    def of(cls, name: str, folder: Path) -> Manifest:
        """That of the model ``name`` in ``folder``, perhaps empty. Raises as the constructor does."""
        return cls(folder / f"{name}{MANIFEST_SUFFIX}")

    @property
    def folder(self) -> Path:
        return self.path.parent

    def _load(self) -> None:
        try:
            self.state = self.path.read_bytes()
            raw = json.loads(self.state)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise OutputProblem(
                f"{self.path} cannot be read.",
                f"{error}.",
                "Remove it to start again; files that it knew of will then need --force.",
            ) from error
        try:
            found = codec.decode(_Content, raw)
            if found.schema_version != SCHEMA_VERSION:
                raise codec.WrongContent(f"schema_version is {found.schema_version}")
        except codec.WrongContent as error:
            raise OutputProblem(
                f"{self.path} is not a manifest that this ggq knows.",
                f"{error}.",
                "Remove it to start again, or choose another folder.",
            ) from error
        self.steps = dict(found.steps)
        self.superseded = list(found.superseded)
        self.model = dict(found.model)
        self.environment = dict(found.environment)
        self.chosen_presets = dict(found.chosen_presets)

    def current(self, step: str, inputs: Mapping[str, str], options: Mapping[str, Any], tool: str) -> bool:
        """Whether the step's record is of exactly this work (its outputs are not looked at)."""
        record = self.steps.get(step)
        return record is not None and record.same_work(inputs, options, tool)

    def outputs_whole(self, step: str) -> bool:
        """Whether every output of the step is there, with its size and digest."""
        record = self.steps.get(step)
        return record is not None and all(output.is_whole_in(self.folder) for output in record.outputs)

    def knows(self, sha256: str) -> bool:
        """Whether a file of this digest was made here."""
        made = (output.sha256 for step in self.steps.values() for output in step.outputs)
        return sha256 in self.superseded or sha256 in made

    def own(self, model: Mapping[str, Any], *, force: bool) -> None:
        """Say whose files these are. Raises OutputProblem when they are another model's of the same name."""
        same = all(self.model.get(key) == model.get(key) for key in ("repo_id", "folder"))
        if self.model and not same and not force:
            raise OutputProblem(
                f"{self.folder} holds the files of another {self.path.name.removesuffix(MANIFEST_SUFFIX)}.",
                f"They were made from {self.model.get('repo_id') or self._source()}.",
                "Choose another folder with --outdir, or give --force to replace them.",
            )
        self.model = dict(model)

    def _source(self) -> Path:
        """The checkpoint's folder, or the base GGUF."""
        return Path(str(self.model.get("folder", ""))) / str(self.model.get("base", ""))

    def claim(self, names: tuple[str, ...], *, force: bool) -> None:
        """Refuse to overwrite a file that these records do not know. Raises OutputProblem."""
        if force:
            return
        for name in names:
            path = self.folder / name
            if path.exists() and not (path.is_file() and self.knows(files.sha256_file(path))):
                raise OutputProblem(
                    f"{path} exists already.",
                    "It is not a file that ggq made here, or it was changed since.",
                    "Move it away, choose another folder, or give --force to overwrite it.",
                )

    def record(self, step: str, record: StepRecord) -> None:
        """Write a finished step down, atomically. Raises OutputProblem, DiskFull."""
        self.record_all({step: record})

    def record_all(self, records: Mapping[str, StepRecord]) -> None:
        """Write several finished steps down: all of them or none. Raises OutputProblem, DiskFull."""
        for step, record in records.items():
            old = self.steps.get(step)
            if old is not None:
                fresh = {output.sha256 for output in record.outputs}
                self.superseded += [
                    output.sha256
                    for output in old.outputs
                    if output.sha256 not in fresh and output.sha256 not in self.superseded
                ]
            self.steps[step] = record
        self._save()

    def choose(self, model: str, preset: str) -> None:
        """Write down which preset was chosen for a model, atomically. Raises OutputProblem, DiskFull."""
        self.chosen_presets[model] = preset
        self._save()

    def _save(self) -> None:
        content = _Content(
            schema_version=SCHEMA_VERSION,
            model=self.model,
            environment=self.environment,
            steps=self.steps,
            superseded=tuple(self.superseded),
            chosen_presets=self.chosen_presets,
        )
        files.write_json(self.path, codec.encode(content))


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoint folders that the manifests in ``folder`` name."""
    found = []
    for manifest in sorted(folder.glob(f"*{MANIFEST_SUFFIX}")):
        try:
            model: Mapping[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["model"]
            found.append(Path(model["folder"]))
        except (OSError, ValueError, KeyError, TypeError):
            # Not a manifest of a local checkpoint: no text is to be found there.
            continue
    return found
