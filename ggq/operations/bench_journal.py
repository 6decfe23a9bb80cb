"""The journal of a run of `ggq bench`: its name, and the keys of what is measured.

Both are what ggq 0.1.0 made of its settings, whose names were not always today's: what a run of its time has
left behind is taken up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ggq.llamacpp.offload import Offload
from ggq.measurement.model_file import Subject
from ggq.measurement.settings import BenchSettings, MemorySettings, QualitySettings, SpeedSettings
from ggq.measurement.words import Kind
from ggq.session import Session


def file_name(
    record: Path, subjects: Iterable[Subject], settings: BenchSettings, session: Session, environment_id: str
) -> str:
    """By a digest of what a run measures, how, and where to: the same command gives the same."""
    work = {
        "record": str(record.absolute()),
        "files": sorted(found.sha256 for found in subjects),
        "settings": _all_settings(settings, session),
        "environment": environment_id,
    }
    digest = hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f".ggq-bench.{digest}.partial.jsonl"


def key(
    kind: Kind,
    found: Subject,
    settings: SpeedSettings | MemorySettings,
    session: Session,
    environment_id: str,
) -> dict[str, Any]:
    """Of one kind of measurement of one file on one machine."""
    if isinstance(settings, MemorySettings):
        how = _memory(settings, settings.placement.offload(session.toolchain))
    else:
        how = asdict(settings)
    return {"kind": kind.value, "model": found.sha256, "settings": how, "environment": environment_id}


def _all_settings(settings: BenchSettings, session: Session) -> dict[str, Any]:
    quality, memory = (it.placement.offload(session.toolchain) for it in (settings.quality, settings.memory))
    return {
        "kinds": settings.kinds,
        "base": settings.base,
        "text": {**asdict(settings.text), "offline": session.offline},
        "quality": _quality(settings.quality, quality),
        "speed": asdict(settings.speed),
        "memory": _memory(settings.memory, memory),
        "within_context": settings.within_context,
    }


def _quality(settings: QualitySettings, offload: Offload) -> dict[str, Any]:
    # The text's choice says whether special tokens are parsed; at this place it was never said.
    how = asdict(settings) | {"until": settings.until, "offload": asdict(offload), "parse_special": False}
    return {name: value for name, value in how.items() if name not in ("full", "placement")}


def _memory(settings: MemorySettings, offload: Offload) -> dict[str, Any]:
    how = asdict(settings) | {"cache_types": settings.cache_types, "offload": asdict(offload)}
    return {name: value for name, value in how.items() if name not in ("types_k", "types_v", "placement")}
