"""How much is tried: a part in `make test`, everything in `make test-all`."""

from __future__ import annotations

import os
from typing import TypeVar

EVERYTHING = os.environ.get("GGQ_TEST_ALL") == "1"

_T = TypeVar("_T")


def tier(quick: _T, whole: _T) -> _T:
    return whole if EVERYTHING else quick
