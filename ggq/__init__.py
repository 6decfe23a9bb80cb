"""ggq: from a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

The functions below are what the commands call. ``ggq.convert``, ``ggq.quantize``, ``ggq.plan`` and
``ggq.bench`` are functions; the rooms of the same names are reached by ``from ggq.convert import …``.
"""

__version__ = "0.1.0"

from ggq.bench.settings import BenchSettings
from ggq.convert import Conversion, convert
from ggq.errors import GgqError
from ggq.foresee import Plan, PlanSettings, plan
from ggq.measure import BenchResult, bench
from ggq.pipeline import PipelineResult, QuantizedFile, Settings, convert_and_quantize, quantize

__all__ = [
    "BenchResult",
    "BenchSettings",
    "Conversion",
    "GgqError",
    "PipelineResult",
    "Plan",
    "PlanSettings",
    "QuantizedFile",
    "Settings",
    "bench",
    "convert",
    "convert_and_quantize",
    "plan",
    "quantize",
]
