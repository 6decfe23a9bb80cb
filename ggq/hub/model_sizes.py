"""Other sizes of a model: repositories of the same owner whose names differ in the size alone."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

from ggq.errors import GgqError
from ggq.hub import client
from ggq.hub.client import Retry
from ggq.progress import silent

# 0.6B, 360M, 8x7B; and what some mixtures of experts say besides: A3B are active at a time.
_SIZE = re.compile(r"(?<![\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BM])(?![a-z0-9])", re.IGNORECASE)
_ACTIVE = re.compile(r"-A\d+(?:\.\d+)?B(?![a-z0-9])", re.IGNORECASE)
_MOST = 200


class _Name(NamedTuple):
    before: str
    after: str
    parameters: float


def next_smaller(repo_id: str) -> str | None:
    """The largest of the smaller models of a family: ``Qwen/Qwen3-4B`` for ``Qwen/Qwen3-8B``. None where its
    name tells no size, the Hub lists none, or cannot be asked: it is an advice, and never an error."""
    own = _parse(repo_id)
    if own is None:
        return None
    owner, _, name = own.before.rpartition("/")
    # A mirror, or the login page of a network, may answer with anything.
    odd = (GgqError, ValueError, KeyError, TypeError, AttributeError)
    with contextlib.suppress(*odd), client.explained(repo_id):
        listed = client.ask(
            lambda: list(
                client.api().list_models(
                    author=owner, search=name.strip("-_. "), limit=_MOST, sort="downloads"
                )
            ),
            Retry(attempts=1),
            silent,
        )
        names = {it.id: _parse(it.id) for it in listed}
        smaller = {
            other: it.parameters
            for other, it in names.items()
            if it and it[:2] == own[:2] and it.parameters < own.parameters
        }
        return max(smaller, key=smaller.__getitem__, default=None)
    return None


def _parse(repo_id: str) -> _Name | None:
    plain = _ACTIVE.sub("", repo_id)
    size = _SIZE.search(plain)
    if size is None:
        return None
    count, number, unit = size.groups()
    parameters = int(count or 1) * float(number) * (1e9 if unit in "bB" else 1e6)
    return _Name(plain[: size.start()].lower(), plain[size.end() :].lower(), parameters)
