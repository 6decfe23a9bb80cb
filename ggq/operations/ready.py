"""From whatever names a model to a GGUF that can be run: the file, the best of a folder, else the job."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ggq import model_ref
from ggq.errors import GgufProblem
from ggq.gguf.file import GgufFile, read_model
from ggq.model_ref import ModelRef
from ggq.progress import Notice
from ggq.serving import places
from ggq.serving.settings import LoadSettings
from ggq.session import Session


@dataclass(frozen=True)
class Ready:
    """A GGUF to run. ``others``: how many models the folder holds beside it; ``made``: it was made just now,
    or found finished."""

    file: GgufFile
    others: int = 0
    made: bool = False


def ready(model: str | Path | ModelRef, session: Session, load: LoadSettings | None = None) -> Ready:
    """The GGUF that ``model`` names. A folder with GGUF files: the largest quantized one that fits. A
    checkpoint folder or a model on the Hub: it is converted and quantized first, as
    ``convert_and_quantize`` does it.

    Raises any GgqError.
    """
    ref = model_ref.reference(model)
    if ref.kind == "gguf" and ref.path is not None:
        return Ready(read_model(ref.path))
    if ref.kind == "folder" and ref.path is not None:
        found = places.models_in(ref.path)
        if found:
            best = places.best_of(session.toolchain, found, load)
            if len(found) > 1:
                session.listener(Notice(f"Of {len(found)} models in {ref.path}: {best.path.name}."))
            return Ready(best, len(found) - 1)
        if not (ref.path / "config.json").is_file():
            raise GgufProblem(
                f"{ref.path} holds neither a GGUF file nor a checkpoint.",
                "There is no *.gguf that is a model, and no config.json.",
                f"Give a file, or a model on the Hub; `ls {shlex.quote(str(ref.path))}` shows what is there.",
            )
    return Ready(read_model(_made(ref, session)), made=True)


def _made(ref: ModelRef, session: Session) -> Path:
    from ggq.operations.convert_and_quantize import convert_and_quantize

    result = convert_and_quantize(ref, session=session)
    return result.files[0].paths[0]
