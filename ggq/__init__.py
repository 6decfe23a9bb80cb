"""ggq: from a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

The names in ``__all__`` are what the commands call. They are imported when they are first asked for: every
command and every child process would wait for all of them otherwise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ggq._version import __version__

if TYPE_CHECKING:
    from ggq.conversion import Conversion, convert
    from ggq.errors import GgqError
    from ggq.measurement.settings import BenchSettings
    from ggq.operations.bench import BenchResult, bench
    from ggq.operations.convert_and_quantize import (
        PipelineResult,
        QuantizedFile,
        Settings,
        convert_and_quantize,
        quantize,
    )
    from ggq.operations.plan import Plan, PlanSettings, plan
    from ggq.operations.publish import PublishSettings, publish
    from ggq.operations.recommend import Limits, Recommendation, recommend
    from ggq.operations.report import ReportResult, ReportSettings, report
    from ggq.quantization.imatrix import ImatrixResult, ImatrixSettings, imatrix

_HOMES = {
    "BenchResult": "ggq.operations.bench",
    "BenchSettings": "ggq.measurement.settings",
    "Conversion": "ggq.conversion",
    "GgqError": "ggq.errors",
    "ImatrixResult": "ggq.quantization.imatrix",
    "ImatrixSettings": "ggq.quantization.imatrix",
    "Limits": "ggq.operations.recommend",
    "PipelineResult": "ggq.operations.convert_and_quantize",
    "Plan": "ggq.operations.plan",
    "PlanSettings": "ggq.operations.plan",
    "QuantizedFile": "ggq.operations.convert_and_quantize",
    "Recommendation": "ggq.operations.recommend",
    "PublishSettings": "ggq.operations.publish",
    "ReportResult": "ggq.operations.report",
    "ReportSettings": "ggq.operations.report",
    "Settings": "ggq.operations.convert_and_quantize",
    "bench": "ggq.operations.bench",
    "convert": "ggq.conversion",
    "convert_and_quantize": "ggq.operations.convert_and_quantize",
    "imatrix": "ggq.quantization.imatrix",
    "plan": "ggq.operations.plan",
    "publish": "ggq.operations.publish",
    "quantize": "ggq.operations.convert_and_quantize",
    "recommend": "ggq.operations.recommend",
    "report": "ggq.operations.report",
}

__all__ = [
    "BenchResult",
    "BenchSettings",
    "Conversion",
    "GgqError",
    "ImatrixResult",
    "ImatrixSettings",
    "Limits",
    "PipelineResult",
    "Plan",
    "PlanSettings",
    "PublishSettings",
    "QuantizedFile",
    "Recommendation",
    "ReportResult",
    "ReportSettings",
    "Settings",
    "__version__",
    "bench",
    "convert",
    "convert_and_quantize",
    "imatrix",
    "plan",
    "publish",
    "quantize",
    "recommend",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
