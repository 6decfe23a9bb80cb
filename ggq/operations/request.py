"""What is asked of the main job, and what of it can be refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggq.conversion import pipes
from ggq.errors import UsageProblem
from ggq.gguf import names as gguf_names
from ggq.llamacpp.tools import QuantizeOptions
from ggq.model_ref import ModelRef
from ggq.presets.catalogue import Preset
from ggq.quantization import engine as choice
from ggq.quantization.imatrix import default_name as matrix_name
from ggq.quantization.one_pass import MAX_MEMORY_BYTES
from ggq.quantization.recipe import check, without_imatrix
from ggq.records.manifest import Manifest
from ggq.system.texts import Text


@dataclass(frozen=True)
class Settings:
    """How to make the files. ``options`` go to llama-quantize; ``calibration``: a text, from which to make an
    importance matrix of the base in place of one in the options; ``parse_special``: with the text's special
    tokens as such; ``engine``: auto, sweep or llama-quantize; ``max_memory_bytes``: of the sweep (see
    ``quantize.engine``); ``verify``: off, sampled or full; ``stream``: read a checkpoint of the Hub
    while it is quantized, and keep nothing of its weights."""

    outtype: str = "auto"
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    calibration: Text | None = None
    parse_special: bool = False
    engine: str = choice.AUTO
    max_memory_bytes: int = MAX_MEMORY_BYTES
    threads: int | None = None
    verify: str = "sampled"
    keep_base: bool = False
    force: bool = False
    stream: bool = False


def refuse_beforehand(settings: Settings, ref: ModelRef, chosen: Sequence[Preset]) -> None:
    """What can be said before anything is read. Raises UsageProblem."""
    check(settings.options)
    choice.check(settings.engine)
    if settings.stream:
        _refuse_to_stream(settings, ref)
    if ref.kind == "gguf":
        return
    if settings.options.keep_split:
        raise UsageProblem(
            "There is no split base to keep the shards of.",
            "--keep-split is for a GGUF in shards; a checkpoint becomes one base file.",
            "Leave --keep-split out.",
        )
    if settings.options.imatrix is None and settings.calibration is None:
        for preset in chosen:
            if preset.needs_imatrix:
                raise without_imatrix(preset)


def _refuse_to_stream(settings: Settings, ref: ModelRef) -> None:
    if ref.path is not None:
        raise UsageProblem(
            f"{ref} lies on this disk already.", "Only what is on the Hub is streamed.", "Leave --stream out."
        )
    obstacles = [
        (settings.keep_base, "--keep-base asks for it."),
        (settings.calibration is not None, "An importance matrix is to be made of it."),
        (settings.engine == choice.TOOL, "llama-quantize reads it from the disk."),
        (settings.verify.lower() == "full", "--verify full looks at all of it."),
        (not pipes.are_there(), "It is handed over by a named pipe, and this system has none."),
    ]
    for holds, why in obstacles:
        if holds:
            raise UsageProblem(
                "A stream leaves no base GGUF.", why, "Leave --stream out: the checkpoint is downloaded then."
            )


def file_names(
    name: str, settings: Settings, chosen: Sequence[Preset], shard_count: int = 1
) -> tuple[str, ...]:
    """The presets' files of the model ``name``; with --keep-split each one's first of ``shard_count``."""
    names = tuple(gguf_names.output_name(name, preset.name) for preset in chosen)
    if not settings.options.keep_split:
        return names
    return tuple(gguf_names.shard_name(Path(it).stem, 1, shard_count) for it in names)


def claim(manifest: Manifest, name: str, settings: Settings, names: Sequence[str]) -> None:
    """Raises OutputProblem, before any work, where the presets' files, or an importance matrix, would
    overwrite something of the user's."""
    matrix = () if settings.calibration is None else (matrix_name(name),)
    manifest.claim((*names, *matrix), force=settings.force)


def spare(base: Path, folder: Path, names: Sequence[str], instead: str) -> None:
    """Raises UsageProblem where one of the presets' files would take the place of the base (``instead``: what
    to do then)."""
    if base.resolve() in [(folder / it).resolve() for it in names]:
        raise UsageProblem(
            f"{base} would be overwritten by itself.",
            "The preset's file would have the name of the base.",
            instead,
        )


def without_base(settings: Settings, base_bytes: int, files_bytes: int, free_bytes: int) -> bool:
    """Whether a checkpoint's presets are made with no base GGUF on the disk: where nobody needs it, or there
    is no room for it beside its presets (``files_bytes``: as estimated in advance)."""
    if settings.engine == choice.TOOL or settings.keep_base or settings.calibration is not None:
        return False
    verify = settings.verify.lower()
    if verify == "full":  # asked for in so many words: rather no files than unproven ones
        return False
    needless = verify == "off"
    return pipes.are_there() and (needless or free_bytes < base_bytes + files_bytes)


def nominal_bytes(preset: Preset, parameter_count: int, base_bits_per_weight: float) -> int:
    """A file's size as estimated before there is a base to ask about."""
    return int(parameter_count * (preset.bits_per_weight or base_bits_per_weight) / 8)
