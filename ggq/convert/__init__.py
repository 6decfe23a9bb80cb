"""Checkpoint -> base GGUF, with the proof that it is the same model.

The converter is llama.cpp's own. ggq completes what it asks for in vain, runs it in a child process, and
holds the result against transformers: values, parameters, tokens, logits.
"""

from ggq.convert.conversion import (
    BITS_PER_WEIGHT,
    Conversion,
    HollowBase,
    convert,
    convert_hollow,
    default_name,
    needed_bytes,
    refuse_existing,
    resolve_outtype,
    verify,
)
from ggq.convert.streamed import StreamedBase
from ggq.convert.verification import LEAST_COSINE, Verification
from ggq.convert.view import SourceInfo

__all__ = [
    "BITS_PER_WEIGHT",
    "LEAST_COSINE",
    "Conversion",
    "HollowBase",
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
