"""One file of a dataset on the Hub, through the same door and into the same cache as models."""

from __future__ import annotations

from pathlib import Path

from ggq.errors import HubProblem
from ggq.hub import client
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.hub.download import bring
from ggq.hub.repository import inspect
from ggq.progress import Listener, silent


def dataset_file(
    repo_id: str,
    path: str,
    *,
    offline: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> Path:
    """Bring one file of a dataset's main branch into the Hub cache, and return where it is.

    Resumed, retried and proven as ``download`` does it; what is there is not fetched again. ``offline``: from
    the cache, or not at all. Raises HubProblem, DiskFull, OutputProblem.
    """
    repo = inspect(repo_id, kind="dataset", offline=offline, retry=retry, listener=listener)
    wanted = [file for file in repo.files if file.path == path]
    if not wanted:
        where = "in the Hub cache" if client.is_offline(offline) else "on the Hub"
        raise HubProblem(
            f"The dataset {repo_id} has no file {path} {where}.",
            f"It has {len(repo.files)} others there at commit {repo.commit[:12]}.",
            f"See {client.endpoint()}/datasets/{repo_id}",
        )
    if not client.is_offline(offline):
        bring(repo, wanted, retry, listener)
    return repo.folder / path
