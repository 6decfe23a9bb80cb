"""The next smaller model of a family, as the Hub lists it."""

from __future__ import annotations

import pytest
from hubserver import HubServer

from ggq.hub import next_smaller

pytestmark = pytest.mark.hub

LISTED = (
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-7B-GGUF", "Qwen/Qwen2.5-7B", "other/Qwen3-6B", "org/Tiny-360M",
    "org/Tiny-1b", "mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-v0.1", "org/nameless",
)  # fmt: skip


@pytest.mark.parametrize(
    ("own", "smaller"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B"),
        ("Qwen/Qwen3-0.6B", None),
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B-Base"),
        ("Qwen/Qwen2.5-7B", None),
        ("org/Tiny-1b", "org/Tiny-360M"),
        ("mistralai/Mixtral-8x22B-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("org/nameless", None),
    ],
)
def test_the_size_is_all_that_differs(hub: HubServer, own: str, smaller: str | None) -> None:
    for repo_id in LISTED:
        hub.add_repo(repo_id, {"config.json": b"{}"})
    assert next_smaller(own) == smaller


def test_a_hub_that_cannot_be_asked_gives_no_advice(hub: HubServer) -> None:
    hub.fault("/api/models", status=403, times=9)
    assert next_smaller("Qwen/Qwen3-8B") is None


def test_what_is_private_is_not_named(hub: HubServer) -> None:
    hub.add_repo("org/Big-2B", {"config.json": b"{}"})
    hub.add_repo("org/Big-1B", {"config.json": b"{}"}, private=True)
    assert next_smaller("org/Big-2B") is None
