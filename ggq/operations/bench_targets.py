"""Which files `ggq bench` measures: named ones, those of folders, and those of models made first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggq import model_ref
from ggq.errors import GgqError, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.operations.convert_and_quantize import convert_and_quantize
from ggq.session import Session


def find_files(targets: Iterable[str | Path], preset_names: Iterable[str], *, session: Session) -> list[Path]:
    """The GGUF files that ``targets`` stand for.

    A checkpoint or a model of the Hub is converted and quantized first, into a folder of its name, with its
    16-bit GGUF. Raises UsageProblem for a folder that holds neither, and whatever the making raises.
    """
    found: dict[Path, None] = {}
    for target in targets:
        folder = Path(target)
        ready = ggufs(folder) if folder.is_dir() else []
        if not ready:
            if folder.is_dir() and not (folder / "config.json").exists():
                raise UsageProblem(
                    f"{folder} holds nothing to measure.",
                    "There is no model in GGUF in it, and no checkpoint (config.json).",
                    "Name a GGUF file, a folder with some, or a model.",
                )
            ref = model_ref.parse_reference(str(target))
            ready = [ref.path] if ref.kind == "gguf" and ref.path else _made(target, preset_names, session)
        found.update(dict.fromkeys(ready))
    return list(found)


def _made(target: str | Path, preset_names: Iterable[str], session: Session) -> list[Path]:
    made = convert_and_quantize(target, preset_names, session=session, keep_base=True)
    return [path for path in (made.base, *(file.paths[0] for file in made.files)) if path]


def ggufs(folder: Path) -> list[Path]:
    """The models in a folder, of split ones the first shard: no projector, adapter or imatrix."""
    models = []
    for path in sorted(folder.glob("*.gguf")):
        if gguf_names.parse_name(path.name).shard in (None, 1):
            try:
                is_model = gguf_file.read(path).text("general.type") in (None, "model")
            except GgqError:
                is_model = True  # it will be met with words
            if is_model:
                models.append(path)
    return models
