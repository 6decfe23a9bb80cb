"""What is logged is shown: warnings once each, and what the tools say with -v alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ggq.cli import logs
from ggq.cli.output import Output
from ggq.system import process


@pytest.fixture(autouse=True)
def before() -> Iterator[None]:
    logger = logging.getLogger("ggq")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.mark.parametrize("verbose", [False, True])
def test_of_a_command_its_output_shows_with_verbose(
    verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.show_on(Output())
    logs.show_on(Output(verbose=verbose))
    process.run(["/bin/sh", "-c", "echo one"])
    logging.getLogger("ggq.llamacpp.toolchain").warning("Take care.")
    logging.getLogger("ggq.llamacpp.toolchain").warning("Take care.")
    said = capsys.readouterr()
    assert said.out == ""
    commands = ["$ /bin/sh -c 'echo one'", "one"] if verbose else []
    assert said.err.splitlines() == [*commands, "warning: Take care."]
