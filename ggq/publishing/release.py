"""What a folder has to publish: its files, whose model they are of, and how they were made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.checkpoint import model_card
from ggq.errors import GgufProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.header import Array, GgufFile
from ggq.records.manifest import MANIFEST_SUFFIX, Manifest, StepRecord

_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
# Tags of a checkpoint that are wrong for a GGUF.
_NOT_INHERITED = frozenset(
    {"safetensors", "transformers", "pytorch", "jax", "tf", "onnx", "region:us", "gguf"}
)
_BLOCK = 256  # values of a K-quant's block


@dataclass(frozen=True)
class Quant:
    """A model file of the release, of all its shards. ``step``: the record of how it was made (None: ggq did
    not make it); ``fallen``: tensors whose rows do not divide by a K-quant's block, by name and type."""

    preset: str
    gguf: GgufFile
    step: StepRecord | None
    fallen: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.gguf.paths

    @property
    def stem(self) -> str:
        shard = gguf_names.SHARD.fullmatch(self.gguf.path.name)
        return shard["stem"] if shard else self.gguf.path.stem


@dataclass(frozen=True)
class Origin:
    """The model that was quantized. ``repo_id``: on the Hub (None: unknown); ``typed``: what a command names
    it; ``license``: the Hub's word."""

    name: str
    repo_id: str | None
    commit: str | None
    typed: str
    license: str | None
    license_name: str | None
    license_link: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    pipeline_tag: str | None
    author: str | None


@dataclass(frozen=True)
class Release:
    """``beside``: files that belong to it and are no presets (an imatrix, a projector)."""

    folder: Path
    origin: Origin
    quants: tuple[Quant, ...]
    beside: tuple[Path, ...]
    steps: Mapping[str, StepRecord]


def look(folder: Path, model: str | None = None, presets: Sequence[str] = ()) -> Release:
    """Read what a folder has. ``model``: which, where the folder has several; ``presets``: these alone.

    Raises UsageProblem where there is nothing to publish or it is not clear what, GgufProblem, OutputProblem.
    """
    manifests = {it.name.removesuffix(MANIFEST_SUFFIX): it for it in folder.glob(f"*{MANIFEST_SUFFIX}")}
    found = sorted(it for it in folder.glob("*.gguf") if it.is_file())
    files = [it for it in found if not _is_later_shard(it)]
    models = sorted({_model_of(it, manifests) for it in files})
    if model is not None and model not in models:
        raise UsageProblem(
            f"{folder} has no model {model}.", f"It has {', '.join(models) or 'none'}.", "Name one of these."
        )
    if model is None and len(models) > 1:
        raise UsageProblem(
            f"{folder} has files of {len(models)} models.",
            f"They are {', '.join(models)}; a repository is of one.",
            "Name one with --model.",
        )
    if not models:
        raise UsageProblem(
            f"{folder} has nothing to publish.",
            "There is no GGUF in it.",
            "Make some: ggq convert-and-quantize",
        )
    name = model or models[0]
    manifest = Manifest(manifests[name]) if name in manifests else None
    own = [it for it in files if _model_of(it, manifests) == name]
    quants, beside = [], []
    for path in own:
        read = gguf_file.read_all(path)
        if read.other_kind is not None:
            beside.append(path)
        else:
            quants.append(_quant(read, manifest))
    wanted = {it.upper() for it in presets}
    if missing := wanted - {it.preset.upper() for it in quants}:
        raise UsageProblem(
            f"{folder} has no {', '.join(sorted(missing))} of {name}.",
            f"It has {', '.join(it.preset for it in quants)}.",
            "Name presets that are there, or make the others first.",
        )
    chosen = [it for it in quants if not wanted or it.preset.upper() in wanted]
    if not chosen:
        raise UsageProblem(f"{folder} has no model to publish.", "Its GGUFs are of other kinds.", "")
    chosen.sort(key=lambda it: -it.gguf.file_bytes)
    origin = _origin(name, chosen[0].gguf, manifest)
    return Release(folder, origin, tuple(chosen), tuple(beside), dict(manifest.steps) if manifest else {})


def _is_later_shard(path: Path) -> bool:
    shard = gguf_names.SHARD.fullmatch(path.name)
    return shard is not None and int(shard["index"]) > 1


def _model_of(path: Path, manifests: Mapping[str, Path]) -> str:
    """By the manifest whose name the file's begins with, the longest of several; else by the name alone."""
    known = [it for it in manifests if path.name.startswith(f"{it}-")]
    return max(known, key=len) if known else gguf_names.parse_name(path.name).model


def _quant(read: GgufFile, manifest: Manifest | None) -> Quant:
    step = None
    for record in manifest.steps.values() if manifest else ():
        if any(output.name == read.path.name for output in record.outputs):
            step = record
    preset = gguf_names.parse_name(read.path.name).type or read.file_type or read.path.stem
    return Quant(preset, read, step, dict(_fallen(preset, read)))


def _fallen(preset: str, read: GgufFile) -> Iterator[tuple[str, str]]:
    """Tensors of a K-quant's file that no K-quant could be made of: name, with * for the layer, and type."""
    if "_K" not in preset and not preset.startswith(("IQ", "TQ")):
        return
    for tensor in read.tensors:
        if len(tensor.shape) > 1 and tensor.shape[0] % _BLOCK and tensor.type not in ("F32", "F16", "BF16"):
            yield _LAYER.sub("*", tensor.name), tensor.type


def _origin(name: str, read: GgufFile, manifest: Manifest | None) -> Origin:
    """From the manifest, the checkpoint's card, and what the conversion took of it into the GGUF."""
    model = manifest.model if manifest else {}
    entries: Mapping[str, object] = {}
    if folder := model.get("folder"):
        entries = model_card.read(Path(str(folder)) / model_card.NAME).entries

    def one(key: str, gguf_key: str) -> str | None:
        value = entries.get(key)
        return value if isinstance(value, str) else read.text(gguf_key)

    tags = [*_texts(read, "general.tags"), *_listed(entries.get("tags"))]
    kept = [it for it in dict.fromkeys(tags) if it.lower() not in _NOT_INHERITED and ":" not in it]
    return Origin(
        name=read.name or name,
        repo_id=model.get("repo_id") or _repo_of(read),
        commit=model.get("commit"),
        typed=_typed(name, model),
        license=one("license", "general.license"),
        license_name=one("license_name", "general.license.name"),
        license_link=one("license_link", "general.license.link"),
        languages=tuple(
            dict.fromkeys([*_texts(read, "general.languages"), *_listed(entries.get("language"))])
        ),
        tags=tuple(kept),
        pipeline_tag=one("pipeline_tag", "general.pipeline_tag")
        or ("text-generation" if read.generates_text else None),
        author=one("author", "general.author") or read.text("general.organization"),
    )


def _typed(name: str, model: Mapping[str, Any]) -> str:
    if repo_id := model.get("repo_id"):
        return f"{repo_id}@{model['commit']}" if model.get("commit") else str(repo_id)
    return Path(str(model.get("base") or model.get("folder") or name)).name


def _repo_of(read: GgufFile) -> str | None:
    """The model's own page, where the GGUF names it: not what that model was made from."""
    found = _HUB_PAGE.fullmatch(read.text("general.repo_url") or read.text("general.source.repo_url") or "")
    return found[1] if found else None


def _texts(read: GgufFile, key: str) -> list[str]:
    value = read.metadata.get(key)
    return [str(it) for it in value] if isinstance(value, Array) and value.is_of_texts else []


def _listed(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [it for it in value if isinstance(it, str)] if isinstance(value, list) else []


def require_distinct(names: Sequence[str]) -> None:
    """Raises UsageProblem where two files would have one name in the repository, whatever the case."""
    counted = Counter(it.casefold() for it in names)
    same = sorted(it for it in names if counted[it.casefold()] > 1)
    if same:
        raise UsageProblem(
            f"{' and '.join(same)} would collide in one repository.",
            "Some systems do not tell their names apart.",
            "Rename one of them, or publish them apart.",
        )


def require_sound(release: Release) -> None:
    """Raises GgufProblem for a file that is not what ggq recorded when it was made."""
    for quant in release.quants:
        if quant.step is None:
            continue
        recorded = {it.name: it.file_bytes for it in quant.step.outputs}
        for path in quant.paths:
            if path.name in recorded and path.stat().st_size != recorded[path.name]:
                raise GgufProblem(
                    f"{path} is not the file that ggq made.",
                    f"It has {path.stat().st_size:,} bytes; {recorded[path.name]:,} were written.",
                    "Make it again, or move it away.",
                )
