"""All that knows the Hub: name a repository, look at it from afar, fetch it into the shared Hub cache."""

from ggq.hub.client import Retry, cache_dir, token_present
from ggq.hub.dataset import dataset_file
from ggq.hub.download import Download, Preview, download, missing_files, needed_bytes, preview
from ggq.hub.file_selection import select_files, weight_files
from ggq.hub.headers import Gathered, gather
from ggq.hub.model_sizes import next_smaller
from ggq.hub.repository import RemoteFile, RemoteModel, inspect, snapshot_of
from ggq.hub.weight_stream import RemoteWeights

__all__ = [
    "Download",
    "Gathered",
    "Preview",
    "RemoteFile",
    "RemoteModel",
    "RemoteWeights",
    "Retry",
    "cache_dir",
    "dataset_file",
    "download",
    "gather",
    "inspect",
    "missing_files",
    "needed_bytes",
    "next_smaller",
    "preview",
    "select_files",
    "snapshot_of",
    "token_present",
    "weight_files",
]
