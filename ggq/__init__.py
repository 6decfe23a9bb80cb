"""ggq: from a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

The names in ``__all__`` are what the commands call. They are imported when they are first asked for: every
command and every child process would wait for all of them otherwise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ggq._version import __version__

if TYPE_CHECKING:
    from ggq.conversion import Conversion
    from ggq.conversion.settings import ConvertSettings
    from ggq.errors import GgqError
    from ggq.measurement.settings import BenchSettings
    from ggq.operations.bench import BenchResult, bench
    from ggq.operations.convert import convert
    from ggq.operations.convert_and_quantize import convert_and_quantize
    from ggq.operations.execute import PipelineResult
    from ggq.operations.plan import plan
    from ggq.operations.plan_settings import PlanSettings
    from ggq.operations.plan_types import Plan
    from ggq.operations.preset_files import QuantizedFile
    from ggq.operations.publish import PublishSettings, publish
    from ggq.operations.quantize import quantize
    from ggq.operations.recommend import recommend
    from ggq.operations.recommend_types import Limits, Recommendation
    from ggq.operations.report import ReportResult, ReportSettings, report
    from ggq.operations.request import Settings
    from ggq.quantization.imatrix import imatrix
    from ggq.quantization.imatrix_settings import ImatrixResult, ImatrixSettings
    from ggq.session import Session

_HOMES = {
    "BenchResult": "ggq.operations.bench",
    "BenchSettings": "ggq.measurement.settings",
    "Conversion": "ggq.conversion",
    "ConvertSettings": "ggq.conversion.settings",
    "GgqError": "ggq.errors",
    "ImatrixResult": "ggq.quantization.imatrix_settings",
    "ImatrixSettings": "ggq.quantization.imatrix_settings",
    "Limits": "ggq.operations.recommend_types",
    "PipelineResult": "ggq.operations.execute",
    "Plan": "ggq.operations.plan_types",
    "PlanSettings": "ggq.operations.plan_settings",
    "QuantizedFile": "ggq.operations.preset_files",
    "Recommendation": "ggq.operations.recommend_types",
    "Session": "ggq.session",
    "Settings": "ggq.operations.request",
    "PublishSettings": "ggq.operations.publish",
    "ReportResult": "ggq.operations.report",
    "ReportSettings": "ggq.operations.report",
    "bench": "ggq.operations.bench",
    "convert": "ggq.operations.convert",
    "convert_and_quantize": "ggq.operations.convert_and_quantize",
    "imatrix": "ggq.quantization.imatrix",
    "plan": "ggq.operations.plan",
    "quantize": "ggq.operations.quantize",
    "publish": "ggq.operations.publish",
    "recommend": "ggq.operations.recommend",
    "report": "ggq.operations.report",
}

__all__ = [
    "BenchResult",
    "BenchSettings",
    "Conversion",
    "ConvertSettings",
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
    "Session",
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
