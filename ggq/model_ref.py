"""What a person may name as a model: a Hub repository, a checkpoint folder, or a GGUF file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggq.errors import UsageProblem

# The Hub's own rule for a name (huggingface_hub's validate_repo_id), with the owner required.
_REPO_ID = re.compile(r"(?!.*(?:--|\.\.))(?!.*\.git$)\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
# git's rule for the name of a branch or tag (git check-ref-format), which covers a commit too.
_REVISION = re.compile(r"(?!.*(?:\.\.|//|@\{))[^\s\x00-\x1f\x7f~^:?*\[\\/.-][^\s\x00-\x1f\x7f~^:?*\[\\]*")
_ADDRESS = re.compile(r"(?:https?|hf)://(?:[^/]+\.[^/]+/)?(?P<repo>[^/]+/[^/?#@]+)")


@dataclass(frozen=True)
class ModelRef:
    """A model by name. ``repo_id`` and ``revision`` are set for ``hub``; ``path`` for the two others.

    ``revision`` None means the repository's default branch.
    """

    kind: Literal["hub", "folder", "gguf"]
    repo_id: str = ""
    revision: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        if self.kind != "hub":
            return str(self.path)
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


def reference(model: str | Path | ModelRef) -> ModelRef:
    """What the API takes as a model. Raises UsageProblem."""
    return model if isinstance(model, ModelRef) else parse_reference(str(model))


def parse_reference(text: str, revision: str | None = None) -> ModelRef:
    """Read ``org/name``, ``org/name@revision``, a checkpoint folder, or a ``.gguf`` file.

    What exists on this disk wins over a repository of the same name. ``revision`` is that of ``--revision``.

    Raises UsageProblem.
    """
    path = _expanded(text)
    if text and _exists(path):
        return _local(text, path, revision)
    if _looks_like_a_path(text):
        raise UsageProblem(
            f"There is no file or folder {text}.",
            "",
            "Check the path. A model on the Hub is written org/name.",
        )
    name, _, pinned = text.partition("@")
    if not _REPO_ID.fullmatch(name):
        raise UsageProblem(
            f"{text!r} names neither a file or folder here nor a model on the Hub.",
            "A model on the Hub is written with its owner, as org/name.",
            _how_to_write(text),
        )
    if "@" in text and revision is not None and pinned != revision:
        raise UsageProblem(
            f"Two revisions are given: {pinned!r} in {text} and {revision!r} by --revision.",
            "",
            "Give one of them.",
        )
    wanted = pinned if "@" in text else revision
    if wanted is not None and not _REVISION.fullmatch(wanted):
        raise UsageProblem(
            f"{wanted!r} cannot be a revision.", "", "Give the name of a branch or tag, or a commit."
        )
    return ModelRef("hub", repo_id=name, revision=wanted)


def _local(text: str, path: Path, revision: str | None) -> ModelRef:
    if revision is not None:
        raise UsageProblem(
            f"{text} is on this disk; a revision belongs to a repository of the Hub.",
            "",
            "Leave --revision out.",
        )
    if path.is_dir():
        return ModelRef("folder", path=path)
    if path.suffix.lower() == ".gguf":
        return ModelRef("gguf", path=path)
    raise UsageProblem(
        f"{text} is neither a folder nor a .gguf file.",
        "A checkpoint is a folder: config, tokenizer and weights together.",
        f"Give its folder: {path.parent}",
    )


def _looks_like_a_path(text: str) -> bool:
    return (
        text in (".", "..")
        or text.startswith(("./", "../", "/", "~"))
        or text.lower().endswith(".gguf")
        or (text.partition("@")[0].count("/") > 1 and "://" not in text)
    )


def _how_to_write(text: str) -> str:
    if address := _ADDRESS.match(text):
        return f"Write {address['repo']}."
    if re.fullmatch(r"[\w.-]+", text, re.ASCII):
        return f"Write org/{text}, with the owner that published it, or the path of a folder or .gguf file."
    return "Write org/name, org/name@revision, or the path of a folder or .gguf file."


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody, who has no home here
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False
