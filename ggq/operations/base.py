"""The 16-bit GGUF that presets are made from: what a job needs to know of it, and one of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ggq.gguf import file as gguf_file
from ggq.progress import Listener
from ggq.records.manifest import Manifest, base_model
from ggq.system import files
from ggq.system.unchanged import Unchanged


class Base(Protocol):
    """The base of a run."""

    def known(self) -> tuple[str, ...]:
        """What records may call it: its digest, if one is known, before anything that stands in for it."""

    def ensure(self) -> tuple[Path, str]:
        """The file, made when first needed, and its digest. Raises GgqError."""

    def unchanged(self) -> Unchanged:
        """What the presets are made from, as it was before any of it was read: the file, or else what is
        converted in a stream."""


class GivenBase:
    """A base GGUF of the user's own, perhaps in shards."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path = path
        self._listener = listener
        self._unchanged = Unchanged(gguf_file.shards(path), lambda: self._digests)

    @cached_property
    def _digests(self) -> Mapping[Path, str]:
        parts = gguf_file.shards(self.path)
        return {part: files.sha256_file(part, self._listener, "read the 16-bit GGUF") for part in parts}

    @property
    def sha256(self) -> str:
        """Of all its shards."""
        with self._unchanged.explaining():
            return "+".join(self._digests.values())

    def known(self) -> tuple[str, ...]:
        return (self.sha256,)

    def ensure(self) -> tuple[Path, str]:
        return self.path, self.sha256

    def unchanged(self) -> Unchanged:
        return self._unchanged


def own_base(manifest: Manifest, given: GivenBase, *, force: bool) -> None:
    """Say in the manifest that the files are of this base, unless an earlier run made the base here, whose
    source is the better answer. Raises OutputProblem."""
    if not manifest.model or not manifest.knows(given.sha256):
        manifest.own(base_model(given.path), force=force)
