"""A short slice of ``make fuzz``: mutated inputs through the verbs that do not start torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tool


@pytest.mark.skipif(sys.platform != "linux", reason="this system is not Linux")
def test_mutated_inputs_end_with_words(toolchain: object) -> None:
    fuzz = Path(__file__).parent / "fuzzing"
    done = subprocess.run(
        [sys.executable, str(fuzz), "--quick", "--seed", "7", "--count", "150", "--jobs", "1"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
