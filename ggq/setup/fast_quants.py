"""Whether libggq-quants makes what ggml makes.

On x86-64 ggq's build compiles ggml's quantizers a second time, with their searches done side by side
(vendor/llama.cpp/cmake/side_by_side.h): two to three times as fast. It is made to do the same arithmetic, and
is used for a type only where it also made the same bytes as libggml-base of every kind of rows below.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggq.errors import ToolFailed
from ggq.gguf import tensor_types
from ggq.llamacpp import endings
from ggq.llamacpp.ggml_rows import QUICK, Rows, library_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import python_child

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_COUNT, _WIDTH = 24, 1024
_TIMEOUT_S = 300  # it takes two seconds


def proven(toolchain: Toolchain) -> tuple[str, ...]:
    """The types that this toolchain's libggq-quants makes as ggml does, tried in a child process; none where
    it has no such library.

    Raises ToolFailed when the child fails, as where this machine has no AVX2.
    """
    if not library_file(toolchain.lib_dir, QUICK).exists():
        return ()
    done = endings.checked(
        python_child.run(__name__, toolchain.lib_dir.absolute(), timeout_s=_TIMEOUT_S, check=False),
        of_file=False,
    )
    try:
        return tuple(json.loads(done.stdout[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise ToolFailed(done.command, done.returncode, done.tail) from error


def is_same(toolchain: Toolchain, kind: str) -> bool:
    """Whether both libraries make the same bytes of all kinds of rows, in this process."""
    by_ggml, quick = Rows(toolchain, ()), Rows(toolchain, (kind,))
    size = tensor_types.by_name()[kind].row_bytes(_COUNT * _WIDTH)
    expected, made = (memoryview(bytearray(size)) for _ in range(2))
    for values in kinds_of_rows():
        for importance in (None, *kinds_of_importance()):
            rows = (kind, _bytes(values), _WIDTH, _bytes(importance))
            by_ggml.quantize(*rows, expected)
            if not quick.quantize_quickly(*rows, made) or made != expected:
                return False
    return True


def kinds_of_rows() -> Iterator[Any]:
    """Rows (float32, 24 × 1024) as models have them, and as they might."""
    import numpy as np

    rng = np.random.default_rng(1)
    shape = (_COUNT, _WIDTH)
    plain = rng.normal(0, 0.02, shape)
    yield plain
    yield plain.astype(np.float16)
    yield rng.standard_t(2, shape) * 0.02  # outliers
    yield np.abs(plain)
    yield -np.abs(plain) - 0.01
    yield plain + 0.5
    yield np.where(rng.random(shape) < 0.9, 0, plain)
    yield np.zeros(shape)
    yield np.broadcast_to(plain[:, :1], shape)
    yield np.sign(plain)
    yield np.round(plain * 200) / 100  # ties
    yield plain * np.logspace(-12, 12, _COUNT)[:, None]
    yield plain * np.logspace(-40, -20, _COUNT)[:, None]  # also below the least normal number
    yield plain * np.logspace(-3, 3, _WIDTH)


def kinds_of_importance() -> Iterator[Any]:
    """Weights of columns (float32, 1024)."""
    import numpy as np

    rng = np.random.default_rng(2)
    yield np.ones(_WIDTH)
    yield rng.chisquare(1, _WIDTH) * 10
    yield np.where(rng.random(_WIDTH) < 0.3, 0, rng.random(_WIDTH))


def _bytes(values: Any) -> Any:
    return None if values is None else memoryview(bytearray(values.astype("f4").tobytes()))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    tools = Toolchain("built", here, here, None, None)
    sys.stdout.write(json.dumps([kind for kind in TYPES if is_same(tools, kind)]) + "\n")
