"""A range of a file, in one answer of the Hub: huggingface_hub's session, its headers and its errors."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from ggq.hub import client
from ggq.hub.repository import RemoteFile, RemoteModel

# A content network need not serve more than 50 GB in one response (huggingface_hub refuses to ask for it).
LONGEST_RESPONSE_BYTES = 10_000_000_000


class RangeIgnored(Exception):
    """The server answered with another part of the file than was asked for."""


@dataclass
class Place:
    """Where a file was found, if not at the Hub itself: an address that is good for a while."""

    url: str | None = None


def blocks(
    repo: RemoteModel, file: RemoteFile, start: int, end: int, silence_s: float, place: Place | None = None
) -> Generator[bytes]:
    """The bytes of ``file`` from ``start`` to before ``end``, as they arrive.

    More may come: a server that knows no ranges sends a file that is asked for from its start to its end, and
    a wrong one sends what it likes. ``place``: asked instead of the Hub where it is known, and filled in.

    Raises huggingface_hub's errors, also where fewer bytes come; RangeIgnored.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status, httpx

    place = place or Place()
    url = place.url or hf_hub_url(
        repo.repo_id, file.path, repo_type=repo.kind, revision=repo.commit, endpoint=client.endpoint()
    )
    wanted = {**client.headers(), "accept-encoding": "identity"}
    if place.url:
        wanted.pop("authorization", None)  # the address itself is signed, and no business of others
    if start or end < file.file_bytes:
        wanted["range"] = f"bytes={start}-{end - 1}"
    with get_session().stream(
        "GET", url, headers=wanted, timeout=silence_s, follow_redirects=True
    ) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        if start and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise RangeIgnored
        if response.history and response.url.netloc != response.history[0].url.netloc:
            place.url = str(response.url)
        came = 0
        for block in response.iter_bytes():
            came += len(block)
            yield block
    if came < end - start:
        raise httpx.RemoteProtocolError(f"the connection ended after {came:,} of {end - start:,} bytes")
