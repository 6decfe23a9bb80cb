"""What the parent of a conversion tells its child process: written by the one, read by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to do. ``name``: the model's; ``gguf`` is written when ``convert``, and only looked at otherwise;
    ``check``: hold it against the checkpoint; ``logits``: also what it computes; ``metadata``: for the
    converter's override. ``hollow``: write no weights; ``without_values``: the checkpoint's own
    weights are empty; ``pipe_folder``: of a ``Pipe`` for the tensors' data, which the file does not have;
    ``fed``: the files of the checkpoint whose content comes through the ``Feed`` beside it;
    ``embedding_rows``: None where they are not known; ``verdict``: see ``verification.KEY``."""

    view: str
    name: str
    gguf: str
    outtype: str
    architecture: str
    source_dir: str
    lib_dir: str
    threads: int
    convert: bool
    check: bool
    logits: bool
    full: bool
    mmproj: bool
    bin_weights: bool
    has_tokenizer_model: bool
    embedding_rows: int | None = None
    hollow: bool = False
    without_values: bool = False
    pipe_folder: str = ""
    fed: Sequence[str] = ()
    arguments: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    repo_id: str = ""
    commit: str = ""
