"""A plugin of pytest: the CPU seconds of every test, its child processes among them, and of all together.

A machine that does other work as well makes a test's wall time long, but not its CPU time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator

import pytest

SHOWN = 10
_KEY = "cpu_seconds"


def used() -> float:
    """CPU seconds of this process and of the children that have ended, so far."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class CpuSeconds:
    """Measures where the tests run, and shows where the reports arrive: with xdist not the same process."""

    def __init__(self) -> None:
        self._since = used()
        self._by_test: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_finish(self) -> None:
        self._since = used()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = used()
        report.user_properties = [*report.user_properties, (_KEY, now - self._since)]
        self._since = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _KEY and isinstance(value, float):
                self._by_test[report.nodeid] += value

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._by_test:
            return
        total = sum(self._by_test.values())
        terminalreporter.section(f"CPU seconds: {total:.0f} s in all, most of it in")
        slowest = sorted(self._by_test.items(), key=lambda item: -item[1])
        for name, seconds in slowest[:SHOWN]:
            terminalreporter.write_line(f"{seconds:7.1f}s {name}")
