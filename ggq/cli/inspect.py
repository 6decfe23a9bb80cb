"""``ggq inspect``: what a GGUF, a checkpoint or a repository of the Hub is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggq.checkpoint import checkpoint
from ggq.cli.options import hub_options, output_options
from ggq.cli.output import Output
from ggq.gguf import file as gguf_file
from ggq.gguf.header import Array
from ggq.model_ref import parse_reference
from ggq.system.files import human_bytes

if TYPE_CHECKING:
    from ggq.hub import RemoteModel


@click.command()
@click.argument("model", metavar="MODEL")
@hub_options
@output_options
def inspect(model: str, revision: str | None, offline: bool, out: Output) -> None:
    """Say what a model is, without loading it.

    MODEL is a .gguf file (one shard stands for all), a checkpoint folder, or org/name[@revision] on the Hub,
    of which nothing is downloaded.

    \b
    ggq inspect Qwen3-0.6B-Q4_K_M.gguf
    ggq inspect ./my-checkpoint --json
    ggq inspect Qwen/Qwen3-0.6B
    """
    ref = parse_reference(model, revision)
    if ref.kind == "hub":
        from ggq import hub

        with out.progress() as listener:
            found = hub.inspect(ref.repo_id, ref.revision, offline=offline, listener=listener)
        _show_remote(found, out)
    elif ref.kind == "gguf":
        _show_gguf(gguf_file.read_all(ref.path or Path(model)), out)
    else:
        _show_checkpoint(checkpoint.read(ref.path or Path(model)), out)


def _show_gguf(gguf: gguf_file.GgufFile, out: Output) -> None:
    groups = _groups((tensor.group, tensor.type, tensor.data_bytes) for tensor in gguf.tensors)
    other = gguf.other_kind
    facts: dict[str, Any] = {
        "kind": "gguf",
        "files": gguf.paths,
        "file_bytes": gguf.file_bytes,
        "trailing_bytes": gguf.trailing_bytes,
        "gguf_version": gguf.version,
        "name": gguf.name,
        "architecture": gguf.architecture,
        "other_kind": other.what if other else None,
        "file_type": gguf.file_type,
        "bits_per_weight": gguf.bits_per_weight,
        "parameter_count": gguf.parameter_count,
        "context_length": gguf.context_length,
        "block_count": gguf.block_count,
        "expert_count": gguf.expert_count,
        "tokenizer": gguf.tokenizer,
        "vocabulary_size": gguf.vocabulary_size,
        "has_chat_template": gguf.has_chat_template,
        "license": gguf.license,
        "base_model": gguf.base_model,
        "tensor_groups": groups,
        "metadata": {
            key: {"array_count": len(value)} if isinstance(value, Array) else value
            for key, value in gguf.metadata.items()
        },
    }
    out.result(_sound(facts))
    blocks = f"{gguf.block_count} layers" if gguf.block_count else ""
    experts = f"{gguf.expert_count} experts" if gguf.expert_count else ""
    _fields(
        out,
        ("file", f"{gguf.path}{f' and {len(gguf.paths) - 1} more' if gguf.paths[1:] else ''}"),
        ("size", f"{human_bytes(gguf.file_bytes)} ({gguf.file_bytes:,} bytes)"),
        ("at its end", f"{gguf.trailing_bytes:,} bytes that belong to no tensor" * (gguf.trailing_bytes > 0)),
        ("format", f"GGUF {gguf.version}"),
        ("remark", f"It is {other.what}. {other.instead}" if other else None),
        ("name", gguf.name),
        ("architecture", ", ".join(filter(None, (gguf.architecture, blocks, experts)))),
        ("parameters", _count(gguf.parameter_count)),
        ("types", ", ".join(filter(None, (gguf.file_type, f"{gguf.bits_per_weight:.2f} bits/weight")))),
        ("context", f"{gguf.context_length:,} tokens" if gguf.context_length else None),
        ("tokenizer", _tokenizer(gguf.tokenizer, gguf.vocabulary_size)),
        ("chat template", "yes" if gguf.has_chat_template else "no"),
        ("license", gguf.license),
        ("base model", gguf.base_model),
    )
    _show_groups(groups, out)


def _show_checkpoint(found: checkpoint.Checkpoint, out: Output) -> None:
    groups = _groups((tensor.group, tensor.dtype, tensor.data_bytes) for tensor in found.tensors)
    facts = {
        "kind": "checkpoint",
        "folder": found.path,
        "architectures": found.architectures,
        "model_type": found.model_type,
        "parameter_count": found.parameter_count,
        "weight_format": found.weight_format,
        "weight_files": [file.name for file in found.weight_files],
        "weight_bytes": found.weight_bytes,
        "dtype": found.dtype,
        "quantization": found.quantization,
        "quantization_description": found.storage.description or None,
        "remark": checkpoint.remark(found) or None,
        "context_length": found.context_length,
        "vocabulary_size": found.vocabulary_size,
        "tokenizer_class": found.tokenizer_class,
        "tokenizer_files": found.tokenizer_files,
        "has_chat_template": found.has_chat_template,
        "license": found.license,
        "tensor_groups": groups,
    }
    out.result(_sound(facts))
    count = len(found.weight_files)
    _fields(
        out,
        ("folder", str(found.path)),
        ("size", f"{human_bytes(found.weight_bytes)} of weights in {count} file{'s'[: count > 1]}"),
        ("format", f"{found.weight_format}, {found.dtype or 'of unknown type'}"),
        ("quantized", found.storage.description or found.quantization),
        ("remark", checkpoint.remark(found)),
        ("architecture", ", ".join(found.architectures)),
        ("parameters", _count(found.parameter_count) if found.parameter_count else None),
        ("context", f"{found.context_length:,} tokens" if found.context_length else None),
        ("tokenizer", _tokenizer(found.tokenizer_class, found.vocabulary_size)),
        ("files of it", ", ".join(found.tokenizer_files)),
        ("chat template", "yes" if found.has_chat_template else "no"),
        ("license", found.license),
    )
    _show_groups(groups, out)


def _show_remote(model: RemoteModel, out: Output) -> None:
    from ggq import hub

    total = sum(file.file_bytes for file in model.files)
    missing = hub.missing_files(model)
    facts = {
        "kind": "repository",
        "repo_id": model.repo_id,
        "revision": model.revision,
        "commit": model.commit,
        "license": model.license,
        "gated": model.gated,
        "base_models": model.base_models,
        "file_bytes": total,
        "files": model.files,
        "missing_files": missing,
    }
    out.result(_sound(facts))
    _fields(
        out,
        ("model", model.repo_id),
        ("commit", f"{model.commit} ({model.revision})"),
        ("license", model.license),
        ("gated", "yes: its terms must be accepted" if model.gated else "no"),
        ("base model", ", ".join(model.base_models)),
        ("size", f"{human_bytes(total)} in {len(model.files)} files"),
    )
    if missing:
        out.warning(
            f"of its weights {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if missing[3:] else ''} are not there."
        )
    out.text()
    out.table(
        ["file", "bytes", "cached"],
        [[_line(file.path), f"{file.file_bytes:,}", "yes" if file.cached else ""] for file in model.files],
        right=(1,),
    )


def _groups(tensors: Iterable[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Of (group, type, bytes) per tensor: each group's tensors, bytes, and tensors per type."""
    types: dict[str, Counter[str]] = {}
    sizes: Counter[str] = Counter()
    for group, kind, data_bytes in tensors:
        types.setdefault(group, Counter())[kind] += 1
        sizes[group] += data_bytes
    return [
        {
            "group": group,
            "tensor_count": counts.total(),
            "data_bytes": sizes[group],
            "types": dict(counts.most_common()),
        }
        for group, counts in types.items()
    ]


def _show_groups(groups: Sequence[dict[str, Any]], out: Output) -> None:
    if groups:
        out.text()
        out.table(
            ["tensors", "count", "size", "types"],
            [
                [
                    group["group"],
                    str(group["tensor_count"]),
                    human_bytes(group["data_bytes"]),
                    ", ".join(f"{kind} ×{count}" for kind, count in group["types"].items()),
                ]
                for group in sorted(groups, key=lambda group: -group["data_bytes"])
            ],
            right=(1, 2),
        )


def _fields(out: Output, *pairs: tuple[str, str | None]) -> None:
    out.fields([(name, _line(value)) for name, value in pairs if value])


def _tokenizer(name: str | None, tokens: int | None) -> str | None:
    return ", ".join(filter(None, (name, f"{tokens:,} tokens" if tokens else None))) or None


def _count(number: int) -> str:
    """``596049920`` -> ``596 M (596,049,920)``."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter} ({number:,})"
    return str(number)


def _line(text: str) -> str:
    """A text from an untrusted header as one line that cannot steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


def _sound(value: Any) -> Any:
    """Header values that JSON does not know, as words."""
    if isinstance(value, dict):
        return {key: _sound(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sound(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
