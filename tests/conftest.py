"""What every test stands on: an environment of its own, models and data."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import no_torch
import pytest
import skips
from cpu_seconds import CpuSeconds
from hubserver import HubServer
from shared import Store, own

from benchmarks.common import random_llama
from ggq.errors import ToolchainProblem
from ggq.llamacpp import rpc
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain

# huggingface_hub reads most of its environment when it is imported, and no test may see the user's token.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ggq-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
for _name in list(os.environ):
    if _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        del os.environ[_name]

_FOLDERS = {
    "HF_HOME": "hf",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
}
_PREFIXES = ("GGQ_", "HF_", "HUGGING", "TRANSFORMERS_", "LLAMA_")
_NOT_UNIT = ("tool", "torch", "slow", "gpu")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unit", action="store_true", help="only what needs no llama.cpp and no torch")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuSeconds(), "cpu-seconds")
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(skips.SkipsFail(), "skips-fail")
    if config.getoption("--unit"):
        no_torch.forbid()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "toolchain" in getattr(item, "fixturenames", ()):
            item.add_marker("tool")
    if config.getoption("--unit"):
        kept = [item for item in items if not any(map(item.get_closest_marker, _NOT_UNIT))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test; returns it. Settings of ggq, the Hub and proxies are unset."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name.lower() in _PROXIES:
            monkeypatch.delenv(name)
    for name, folder in _FOLDERS.items():
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setenv("NO_COLOR", "1")
    return home


@pytest.fixture(scope="session")
def data() -> Path:
    """Small real models, tokenizers and texts: see its README.md."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def stories(data: Path) -> Path:
    """A trained checkpoint whose rows do not divide by 256: most tensors fall back."""
    return data / "models" / "stories260K"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Store:
    """What this run has made already, by whichever of xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    return Store((base if worker_id == "master" else base.parent) / "shared")


@pytest.fixture
def shared_hollow_models(isolated_environment: Path, store: Store) -> None:
    """ggq's models without weights are kept for the whole run: what is planned of a checkpoint is asked of
    one. They are told apart by the checkpoint's content."""
    cache = isolated_environment / _FOLDERS["XDG_CACHE_HOME"] / "ggq"
    cache.mkdir(parents=True)
    (cache / "hollow").symlink_to(store.folder("hollow"))


@pytest.fixture(scope="session")
def larger(store: Store) -> Path:
    """8 M random weights in rows of 256 and more: every preset applies in full, and takes a moment."""
    size = {"width": 256, "ffn": 768, "layers": 8, "heads": 4, "context": 1024}

    def make(folder: Path) -> None:
        random_llama(folder / "larger-llama", **size)

    return store.made({"random_llama": size}, make) / "larger-llama"


@pytest.fixture(scope="session")
def example() -> Path:
    """The embedded model."""
    return Path(__file__).parents[1] / "examples" / "tiny-llama"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback, to which HF_ENDPOINT points, also for child processes."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The llama.cpp under test: GGQ_LLAMA_CPP, or what `make setup` built."""
    try:
        return toolchains.find()
    except ToolchainProblem as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def base_gguf(
    toolchain: Toolchain, example: Path, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The embedded model as a BF16 GGUF, by llama.cpp's own converter. Tests copy it where they change it."""
    base = store.converted(toolchain, example, "bf16", by_hand=True)
    return own(base, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def chat_gguf(toolchain: Toolchain, data: Path, store: Store) -> Path:
    """A model that answers a few questions (see train_chat_model.py), as a BF16 GGUF. Tests only read it."""
    return store.converted(toolchain, data / "models" / "chat260K", "bf16", by_hand=True)


@pytest.fixture
def rpc_server(toolchain: Toolchain) -> Iterator[str]:
    """``host:port`` of a device that llama.cpp treats like a GPU."""
    with rpc.loopback_device(toolchain) as address:
        yield address
