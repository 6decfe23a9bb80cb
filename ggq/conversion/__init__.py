"""Checkpoint -> base GGUF, with the proof that it is the same model.

The converter is llama.cpp's own. ggq completes what it asks for in vain, runs it in a child process, and
holds the result against transformers: values, parameters, tokens, logits.
"""

from ggq.conversion.checkpoint_view import SourceInfo
from ggq.conversion.conversion import (
    BITS_PER_WEIGHT,
    Conversion,
    convert,
    convert_hollow,
    default_name,
    needed_bytes,
    refuse_existing,
    resolve_outtype,
    verify,
)
from ggq.conversion.streaming import StreamedBase
from ggq.conversion.verification import LEAST_COSINE, Verification

__all__ = [
    "BITS_PER_WEIGHT",
    "LEAST_COSINE",
    "Conversion",
    "SourceInfo",
    "StreamedBase",
    "Verification",
    "convert",
    "convert_hollow",
    "default_name",
    "needed_bytes",
    "refuse_existing",
    "resolve_outtype",
    "verify",
]
