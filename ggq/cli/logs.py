"""What is logged below, on the terminal: warnings, each once, and with ``-v`` all that the tools say."""

from __future__ import annotations

import logging

from ggq.cli.output import Output

_LOGGER = "ggq"


class _Handler(logging.Handler):
    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            self._out.echo(text)
        elif text not in self._warned:
            self._warned.add(text)
            self._out.warning(text)


def show_on(out: Output) -> None:
    """From now on, in the place of what was shown on another output before."""
    logger = logging.getLogger(_LOGGER)
    logger.handlers = [_Handler(out)]
    logger.setLevel(logging.DEBUG if out.is_verbose else logging.WARNING)
