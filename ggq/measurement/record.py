"""The record beside the models: what was measured of each file, on which machine, with every sample.

One JSON file per folder. An entry is of one file (its sha256) on one machine and build; what is measured
again takes the place of the old, and what was not measured this time stays.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggq.errors import OutputProblem
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.records import manifest
from ggq.system import files

SCHEMA_VERSION = 1
FILE_NAME = manifest.BENCH_RECORD
JOURNAL_NAME = ".ggq-bench.{}.partial.jsonl"  # of each run its own, by a digest of what it measures

Kind = Literal["quality", "speed", "memory"]
KINDS: tuple[Kind, ...] = ("quality", "speed", "memory")
# What makes a figure another one when it changes; versions of Python or of ggq do not.
_IDENTITY = ("cpu", "instruction_sets", "usable_cores", "ram_total_bytes", "gpus", "llama_cpp_commit",
             "llama_cpp_backends", "llama_cpp_flags")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What was measured of one file on one machine.

    ``model``: name, file_name, sha256, file_bytes, bits_per_weight, parameter_count, architecture;
    ``measurements``: of each kind what its room gives, with ``measured_at`` (UTC).
    """

    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    environment_id: str
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.model["sha256"], self.environment_id


class Record:
    """The entries of one folder. Raises OutputProblem when the file there is not one that ggq knows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[tuple[str, str], Entry] = {}
        for entry in _load(path):
            self._entries[entry.key] = entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def add(
        self, subject: Subject, environment: Mapping[str, Any], kind: Kind, measurement: Mapping[str, Any]
    ) -> None:
        """Put a measurement in, in the place of an older one of its kind, file and machine."""
        fresh = Entry(_model(subject), environment, environment_id(environment))
        known = self._entries.get(fresh.key)
        # As the file holds it, where a tuple is a list: only so can it be compared with what is known.
        found = json.loads(json.dumps(measurement))
        stamped = {"measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **found}
        old = known.measurements.get(kind) if known else None
        merged = _merged(kind, old, stamped) if old else stamped
        measurements = {**(known.measurements if known else {}), kind: merged}
        self._entries[fresh.key] = Entry(fresh.model, environment, fresh.environment_id, measurements)

    def save(self) -> None:
        """Write the file, atomically. Raises OutputProblem, DiskFull."""
        files.write_json(
            self.path,
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "ggq-bench",
                "entries": [asdict(entry) for entry in self.entries],
            },
        )


# What tells one figure or cell from another, where the rest of the measurement was done alike.
_PARTS = {
    "speed": ("figures", ("test", "tokens", "depth_tokens", "n_gpu_layers")),
    "memory": ("cells", ("context_tokens", "type_k", "type_v", "load_mode")),
}
_ALIKE = {
    "speed": ("type_k", "type_v", "flash_attention", "load_mode"),
    "memory": ("offload",),
    "quality": ("base", "text", "context", "offload"),
}


def _merged(kind: Kind, old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """A new measurement over an old one: figures that were not measured again stay where all else was alike,
    and a quality that was measured on more tokens stays as it is."""
    if any(old.get(name) != new.get(name) for name in _ALIKE[kind]):
        return new
    if kind == "quality":
        return old if old["scored_tokens"] > new["scored_tokens"] else new
    parts, identity = _PARTS[kind]

    def key(part: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(part[name] for name in identity)

    # What is new comes first: a table shows it before an older figure of another length or context.
    fresh = [part for part in new[parts] if not _is_empty(part)]
    known = {key(part) for part in fresh}
    kept = [part for part in old[parts] if key(part) not in known]
    known |= {key(part) for part in kept}
    return {**new, parts: [*fresh, *kept, *(part for part in new[parts] if key(part) not in known)]}


def _is_empty(part: Mapping[str, Any]) -> bool:
    """A cell of memory that was only predicted."""
    return "measured" in part and part["measured"] is None


def environment_id(environment: Mapping[str, Any]) -> str:
    """A short digest of the machine and the build."""
    identity = {name: environment.get(name) for name in _IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def quality_measurements(
    result: QualityResult, base: Subject, models: Sequence[Subject]
) -> Iterator[tuple[Subject, dict[str, Any]]]:
    """Of each file its own part of a quality measurement, the base first."""
    common = {
        "base": {"name": base.name, "sha256": base.sha256},
        "text": {
            "name": result.text.name,
            "sha256": result.text.sha256,
            "file_bytes": result.text.file_bytes,
        },
        "parse_special": result.settings.parse_special,
        "context": result.context,
        "text_tokens": result.text_tokens,
        "chunks": result.chunks,
        "scored_tokens": result.scored_tokens,
        "stopped": result.stopped,
        "until": result.settings.until,
        "seed": result.settings.seed,
        "indifference": result.settings.indifference,
        "error_rate": result.settings.error_rate,
        "threads": result.threads,
        "offload": asdict(result.settings.offload),
    }
    ranking = [_finite(asdict(pair)) for pair in result.ranking]
    witness = asdict(result.reference) if result.reference else None
    own = {"perplexity": asdict(result.base_perplexity), "ranking": ranking, "reference": witness}
    yield base, {**common, **own}
    measured = {model.name: model for model in result.models}
    for subject in models:
        model = measured.get(subject.name)
        if model is None:
            continue
        rounds = [
            {
                "excerpt": asdict(part.excerpt),
                "scored_tokens": part.scored_tokens,
                **asdict(part.divergences[model.name]),
            }
            for part in result.rounds
        ]
        figures = {name: value for name, value in asdict(model).items() if name != "name"}
        yield subject, {**common, **figures, "rounds": rounds}


# --- what a table shows of an entry ----------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An entry's main figures; None: not measured. ``is_base``: others were compared with it. Speeds are at
    the greatest number of layers on GPUs that was measured, without depth; ``ram_bytes``: peak resident of
    the shortest context that was measured, ``vram_bytes``: of all GPUs then."""

    name: str
    file_name: str
    sha256: str
    environment_id: str
    is_base: bool
    file_bytes: int
    bits_per_weight: float
    perplexity: Estimate | None
    mean_kld: Estimate | None
    same_top: Estimate | None
    prompt_tokens_per_s: Estimate | None
    generation_tokens_per_s: Estimate | None
    ram_bytes: int | None
    vram_bytes: int | None


def rows(entries: Sequence[Entry]) -> list[Row]:
    """A row for each entry: bases first, then by bits per weight."""
    bases = {it["base"]["sha256"] for entry in entries if (it := entry.measurements.get("quality"))}
    made = [_row(entry, is_base=entry.model["sha256"] in bases) for entry in entries]
    return sorted(made, key=lambda row: (not row.is_base, row.bits_per_weight, row.name))


def _row(entry: Entry, *, is_base: bool) -> Row:
    quality = entry.measurements.get("quality", {})
    speed = entry.measurements.get("speed", {})
    ram_bytes, vram_bytes = _memory(entry.measurements.get("memory", {}))
    return Row(
        name=entry.model["name"],
        file_name=entry.model["file_name"],
        sha256=entry.model["sha256"],
        environment_id=entry.environment_id,
        is_base=is_base,
        file_bytes=entry.model["file_bytes"],
        bits_per_weight=entry.model["bits_per_weight"],
        perplexity=_estimate(quality.get("perplexity")),
        mean_kld=_estimate(quality.get("mean_kld")),
        same_top=_estimate(quality.get("same_top")),
        prompt_tokens_per_s=_rate(speed, "prompt"),
        generation_tokens_per_s=_rate(speed, "generation"),
        ram_bytes=ram_bytes,
        vram_bytes=vram_bytes,
    )


def _estimate(raw: Mapping[str, Any] | None) -> Estimate | None:
    return Estimate(raw["value"], raw["standard_error"]) if raw else None


def _rate(speed: Mapping[str, Any], test: str) -> Estimate | None:
    figures = [figure for figure in speed.get("figures", ()) if figure["test"] == test]
    if not figures:
        return None
    best = min(figures, key=lambda figure: (figure["depth_tokens"], -figure["n_gpu_layers"]))
    rate = best["speed"]
    share = rate["relative_standard_error"]
    median = rate["median_tokens_per_s"]
    return Estimate(median, median * share if share is not None else None)


def _memory(memory: Mapping[str, Any]) -> tuple[int | None, int | None]:
    run = next((cell["measured"] for cell in memory.get("cells", ()) if cell["measured"]), None)
    if run is None:
        return None, None
    vram = sum(gpu["used_bytes"] for gpu in run["gpus"]) if run["gpus"] else None
    return run["peaks"]["resident_bytes"], vram


def _finite(pair: dict[str, Any]) -> dict[str, Any]:
    """A comparison as JSON can hold it: an end of an interval that nothing bounds is null."""
    ends = {name: end if math.isfinite(end) else None for name, end in pair["interval"].items()}
    return {**pair, "interval": ends}


def _model(subject: Subject) -> dict[str, Any]:
    model = {name: value for name, value in asdict(subject).items() if name != "path"}
    return {**model, "file_name": subject.path.name}


def _load(path: Path) -> list[Entry]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["kind"] != "ggq-bench" or raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{raw['kind']!r}, schema_version {raw['schema_version']!r}")
        entries = [Entry(**entry) for entry in raw["entries"]]
        # A look at all that a table would need: what is not a record shows here.
        rows(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputProblem(
            f"{path} cannot be read.", f"{error.strerror}.", "Mend its permissions."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, json.JSONDecodeError):
            why = "It is not JSON."
        else:
            why = f"It has no {error}." if isinstance(error, KeyError) else f"{error}."
        raise OutputProblem(
            f"{path} is not a record of measurements that this ggq knows.",
            why,
            "Name another file; where a new record is to be written, move this one away.",
        ) from error
    return entries
