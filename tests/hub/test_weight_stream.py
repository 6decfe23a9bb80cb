"""Weights read where they are: in one answer where that goes, whatever breaks, with a digest as the proof."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hubserver import HubServer

from ggq import hub as the_hub
from ggq.errors import Damaged, HubProblem
from ggq.hub import RemoteWeights, Retry

pytestmark = pytest.mark.hub

FILE = "model.safetensors"
HEADER = b'{"a": {"dtype": "U8", "shape": [6000000], "data_offsets": [0, 6000000]}}'
START = 8 + len(HEADER)
DATA = random.Random(1).randbytes(6_000_000)
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + DATA


@pytest.fixture
def weights(hub: HubServer, tmp_path: Path) -> RemoteWeights:
    hub.add_repo("org/model", {FILE: WHOLE})
    (tmp_path / FILE).write_bytes(WHOLE[:START])
    model = the_hub.inspect("org/model")
    hub.log.clear()
    return RemoteWeights(model, tmp_path, retry=Retry(first_wait_s=0.01, timeout_s=0.5))


def read(weights: RemoteWeights, start: int, size: int) -> bytes:
    """From ``start`` of the data on."""
    return b"".join(weights.read(FILE, START + start, size))


def is_right(weights: RemoteWeights, *sizes: int) -> bool:
    """Whether parts of these sizes, one after the other, arrive as they are; the last takes the rest."""
    at = 0
    for size in (*sizes, len(DATA) - sum(sizes)):
        if read(weights, at, size) != DATA[at : at + size]:
            return False
        at += size
    return True


def test_what_is_read_in_order_takes_one_answer(hub: HubServer, weights: RemoteWeights) -> None:
    assert is_right(weights, 1_000_000, 1, 0, 65_536, 2_000_000)
    assert len(hub.requests(FILE)) == 2, "the Hub sends on to its content network, once"
    assert hub.bytes_sent(FILE) == weights.received_bytes == len(DATA)
    assert weights.proven == (FILE,) and not weights.unproven


def test_what_is_passed_over_is_read_all_the_same(hub: HubServer, weights: RemoteWeights) -> None:
    for start, size in ((1000, 500_000), (501_500, len(DATA) - 501_500)):
        assert read(weights, start, size) == DATA[start : start + size]
    assert weights.proven == (FILE,)
    assert hub.bytes_sent(FILE) == len(DATA)


def test_parts_in_another_order_are_asked_for_one_by_one(hub: HubServer, weights: RemoteWeights) -> None:
    for start in (5_000_000, 3_000_000, 1_000_000):
        assert read(weights, start, 1000) == DATA[start : start + 1000]
    assert weights.unproven == (FILE,)
    assert hub.bytes_sent(FILE) == 3000
    # The content network's address is signed and good for a while: the Hub is asked for it once.
    assert [seen.at_cdn for seen in hub.requests(FILE)] == [False, True, True, True]


def test_an_address_that_expired_is_asked_for_anew(hub: HubServer, weights: RemoteWeights) -> None:
    hub.tokens.add("hf_secret")
    assert read(weights, 5_000_000, 1000) == DATA[5_000_000:5_001_000]
    hub.fault(f"/{FILE}", status=403)
    assert read(weights, 3_000_000, 1000) == DATA[3_000_000:3_001_000]
    assert [seen.at_cdn for seen in hub.requests(FILE)] == [False, True, True, False, True]


def test_the_token_is_for_the_hub_alone(
    hub: HubServer, weights: RemoteWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens.add("hf_secret")
    for start in (3_000_000, 1_000_000):
        read(weights, start, 10)
    assert [seen.token for seen in hub.requests(FILE)] == ["hf_secret", None, None]


def test_a_line_that_breaks_goes_on_where_it_was(hub: HubServer, weights: RemoteWeights) -> None:
    dice = random.Random(2)
    for _ in range(5):
        hub.fault(FILE, cut_after_bytes=dice.randrange(300_000))
        hub.fault(FILE, status=dice.choice((500, 502, 503)))
    hub.fault(FILE, stall_s=1)
    assert is_right(weights, 700_000, 700_000)
    assert hub.bytes_sent(FILE) - weights.received_bytes <= 1 << 16, "the block that came too late"
    assert weights.received_bytes == len(DATA)
    assert weights.proven == (FILE,)


def test_a_connection_that_is_reset(hub: HubServer, weights: RemoteWeights) -> None:
    hub.fault(FILE, cut_after_bytes=2_000_000, reset=True, times=2)
    assert is_right(weights)


def test_a_hub_that_does_not_recover(hub: HubServer, weights: RemoteWeights) -> None:
    hub.fault(FILE, status=503, times=100)
    with pytest.raises(HubProblem, match="in trouble"):
        read(weights, 0, 10)


@pytest.mark.parametrize("start", [0, 3_000_000])
def test_a_server_without_ranges(hub: HubServer, weights: RemoteWeights, start: int) -> None:
    hub.fault(FILE, ignore_range=True)
    with pytest.raises(HubProblem, match="does not send parts of files"):
        read(weights, start, 10)


def test_damage_is_found_before_the_last_byte(hub: HubServer, weights: RemoteWeights) -> None:
    hub.fault(FILE, flip_byte=START + 4_000_000)
    came = 0
    with pytest.raises(Damaged, match="arrived damaged"):
        for block in weights.read(FILE, START, len(DATA)):
            came += len(block)
    assert came < len(DATA)
