"""Why a test may be skipped: for what the machine is. Where CI is true, any other reason is a failure."""

from __future__ import annotations

from collections.abc import Generator

import pytest

# What a reason begins with.
ALLOWED = ("no GPU", "a GPU", "no browser", "not root", "this CPU", "this system")


class SkipsFail:
    """A plugin of pytest: a test that was skipped for another reason than the machine has failed."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            _judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.skipped:
            _judge(report)
        return report


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"Skipped, though the machine is not the reason: {reason}"
