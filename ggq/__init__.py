"""ggq: from a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

The names in ``__all__`` are what the commands call. ``ggq.convert``, ``ggq.quantize``, ``ggq.plan``,
``ggq.bench`` and ``ggq.recommend`` are functions; the rooms of the same names are reached by
``from ggq.convert import …``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BenchResult": "ggq.operations.bench",
    "BenchSettings": "ggq.measurement.settings",
    "Conversion": "ggq.convert",
    "GgqError": "ggq.errors",
    "ImatrixResult": "ggq.quantization.imatrix",
    "ImatrixSettings": "ggq.quantization.imatrix",
    "Limits": "ggq.recommend",
    "PipelineResult": "ggq.operations.convert_and_quantize",
    "Plan": "ggq.operations.plan",
    "PlanSettings": "ggq.operations.plan",
    "QuantizedFile": "ggq.operations.convert_and_quantize",
    "Recommendation": "ggq.recommend",
    "Settings": "ggq.operations.convert_and_quantize",
    "bench": "ggq.operations.bench",
    "convert": "ggq.convert",
    "convert_and_quantize": "ggq.operations.convert_and_quantize",
    "imatrix": "ggq.quantization.imatrix",
    "plan": "ggq.operations.plan",
    "quantize": "ggq.operations.convert_and_quantize",
    "recommend": "ggq.recommend",
}

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
    from ggq.operations.recommend import Limits, Recommendation, recommend
    from ggq.quantization.imatrix import ImatrixResult, ImatrixSettings, imatrix

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
    "QuantizedFile",
    "Recommendation",
    "Settings",
    "bench",
    "convert",
    "convert_and_quantize",
    "imatrix",
    "plan",
    "quantize",
    "recommend",
]


class _Front(ModuleType):
    """This module, whose names are imported when they are first asked for: every command and every child
    process would wait for all of them otherwise. ``__getattribute__`` and not ``__getattr__``, since the
    import of a room puts a module in the place of the function of its name."""

    def __getattribute__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        return super().__getattribute__(name)


sys.modules[__name__].__class__ = _Front
