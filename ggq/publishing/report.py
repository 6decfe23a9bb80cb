"""The report: one page, complete in itself, that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ggq._version import __version__
from ggq.measurement import tables
from ggq.publishing.charts import drawn
from ggq.publishing.choice import Choice
from ggq.publishing.collection import Collection, Measured, machine_name
from ggq.publishing.how_to_run import commands
from ggq.publishing.report_charts import charts
from ggq.system import files

SCHEMA_VERSION = 1
_SHAPES = 8  # colours and shapes of series, after which they begin again


def render(found: Collection, chosen: Sequence[Choice], made_at: str) -> str:
    """The page as HTML. ``made_at``: a date and time (UTC), which stands on it."""
    import jinja2

    style, script = _part("report.css"), _part("report.js")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ggq.publishing", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    several = len(found.machines) > 1
    columns, rows = _table(found)
    return environment.get_template("report.html.j2").render(
        title=", ".join(found.models),
        models=found.models,
        choices=[(it, _choice_title(found, it)) for it in chosen],
        charts=[replace(chart, drawings=drawn(chart)) for chart in charts(found)],
        shapes=_SHAPES,
        columns=columns,
        rows=rows,
        runs=[commands(it) for it in _each_file_once(found)],
        preferred={it.chosen.row.file_name for it in chosen},
        machines=[(machine_name(it), _facts(it)) for it in found.machines.values()],
        several_machines=several,
        unmeasured=[path.name for path in found.unmeasured],
        data=_json(found, chosen, made_at),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        made_at=made_at,
        version=__version__,
    )


def write(page: str, target: Path) -> None:
    """Write the page, whole or not at all. Raises OutputProblem, DiskFull."""
    partial = target.with_name(f".{target.name}{files.STAGING}")
    with files.explain_os_error(target, "choose another file with -o/--output"):
        try:
            partial.write_text(page, encoding="utf-8")
            files.publish(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def _part(name: str) -> str:
    return resources.files("ggq.publishing").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls a text that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _choice_title(found: Collection, it: Choice) -> str:
    where = f" on {machine_name(found.machines[it.machine])}" if len(found.machines) > 1 else ""
    return f"{it.model}: {it.chosen.preset}{where}"


def _each_file_once(found: Collection) -> list[Measured]:
    """As it was measured last, of several machines."""
    return list({it.row.sha256: it for it in found.measured}.values())


# --- the table -------------------------------------------------------------------------------------------

Cell = tuple[str, float | str | None]
_Columns = list[tuple[str, str, bool]]


def _table(found: Collection) -> tuple[_Columns, list[list[Cell]]]:
    """Columns (name, what it means, whether numbers) and rows of cells: the words, and what is sorted by.
    Columns of which nothing is known are left out."""
    every: list[tuple[str, str, bool, list[Cell]]] = [
        ("model", "", False, [(it.model, it.model) for it in found.measured]),
        ("preset", "", False, [(it.preset, it.row.bits_per_weight) for it in found.measured]),
        ("machine", "", False, [(name, name) for name in (_machine(found, it) for it in found.measured)]),
        ("size", "bytes on disk", True, [_bytes(it.row.file_bytes) for it in found.measured]),
        ("bpw", "bits per weight", True, [
            (f"{it.row.bits_per_weight:.2f}", it.row.bits_per_weight) for it in found.measured
        ]),
        ("PPL", "perplexity", True, [
            (tables.perplexity(it.row.perplexity), _value(it.row.perplexity)) for it in found.measured
        ]),
        ("KLD", "mean KL divergence from the 16-bit GGUF, nats per token", True, [
            (tables.relative(it.row.mean_kld), _value(it.row.mean_kld)) for it in found.measured
        ]),
        ("top-1 %", "tokens of which the most probable one is the same", True, [
            (tables.percent(it.row.same_top), _value(it.row.same_top)) for it in found.measured
        ]),
        ("pp t/s", "prompt processing, tokens per second", True, [
            (tables.plus_minus(it.row.prompt_tokens_per_s, 2), _value(it.row.prompt_tokens_per_s))
            for it in found.measured
        ]),
        ("tg t/s", "generation, tokens per second", True, [
            (tables.plus_minus(it.row.generation_tokens_per_s, 2), _value(it.row.generation_tokens_per_s))
            for it in found.measured
        ]),
        ("RAM", "resident memory at its peak", True, [_bytes(it.row.ram_bytes) for it in found.measured]),
        ("VRAM", "memory of GPUs at its peak", True, [_bytes(it.row.vram_bytes) for it in found.measured]),
    ]  # fmt: skip
    single = {"model"} if len(found.models) == 1 else set()
    single |= {"machine"} if len(found.machines) == 1 else set()
    shown = [
        column
        for column in every
        if column[0] not in single and any(value is not None for _, value in column[3])
    ]
    columns = [(name, meaning, numbers) for name, meaning, numbers, _ in shown]
    return columns, [list(cells) for cells in zip(*(cells for *_, cells in shown), strict=True)]


def _machine(found: Collection, it: Measured) -> str:
    return machine_name(found.machines[it.machine])


def _value(estimate: Any) -> float | None:
    return None if estimate is None else estimate.value


def _bytes(count: int | None) -> Cell:
    return (tables.MISSING, None) if count is None else (files.human_bytes(count), count)


# --- the environment, and the data -----------------------------------------------------------------------

_WORDS = {
    "cpu": "CPU",
    "instruction_sets": "instruction sets",
    "usable_cores": "cores",
    "ram_total_bytes": "RAM",
    "gpus": "GPUs",
    "nvidia_driver": "NVIDIA driver",
    "system": "system",
    "python": "Python",
    "ggq": "ggq",
    "llama_cpp_commit": "llama.cpp commit",
    "llama_cpp_backends": "llama.cpp backends",
    "llama_cpp_flags": "llama.cpp build flags",
}


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for key, word in _WORDS.items():
        value = environment.get(key)
        if value in (None, [], ()):
            continue
        if key.endswith("_bytes"):
            value = files.human_bytes(value)
        elif key == "gpus":
            value = ", ".join(str(gpu.get("description") or gpu.get("name")) for gpu in value)
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        facts.append((word, str(value)))
    return facts


def _json(found: Collection, chosen: Sequence[Choice], made_at: str) -> str:
    """The page's figures for a program, as JSON that no tag can end."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "kind": "ggq-report",
        "made_at": made_at,
        "files": [
            {
                "model": it.model,
                **asdict(it.row),
                "ground": asdict(it.ground) if it.ground else None,
                "speeds": [asdict(each) for each in it.speeds],
                "memories": [asdict(each) for each in it.memories],
            }
            for it in found.measured
        ],
        "machines": dict(found.machines),
        "choices": [
            {
                "model": it.model,
                "environment_id": it.machine,
                "preset": it.chosen.preset,
                "file_name": it.chosen.row.file_name,
                "reasons": list(it.reasons),
            }
            for it in chosen
        ],
    }
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
