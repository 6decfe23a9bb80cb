"""A test that is skipped without need does not go unnoticed where CI is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no GPU in this machine")
def test_machine(): pass

def test_browser(): pytest.skip("no browser: chromium is not installed")

@pytest.mark.xfail(reason="known")
def test_expected(): assert False

@pytest.mark.skipif(True, reason="the data are elsewhere")
def test_by_mark(): pass

def test_by_call(): pytest.skip("the data are elsewhere")
"""
PLUGIN = """
import os, skips
def pytest_configure(config):
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(skips.SkipsFail())
"""


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [("true", "1 failed, 2 skipped, 1 xfailed, 1 error"), ("", "4 skipped, 1 xfailed")],
)
def test_only_the_machine_is_a_reason(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_some.py").write_text(TESTS)
    env = {
        **os.environ,
        "CI": ci,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(__file__).parent / "helpers"),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert outcome in done.stdout, done.stdout
    assert ("the machine is not the reason: the data are elsewhere" in done.stdout) == (ci == "true")
