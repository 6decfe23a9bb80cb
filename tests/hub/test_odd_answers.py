"""Answers of a shape that no Hub gives: words, whoever stumbles over them."""

from __future__ import annotations

from typing import Any, cast

import pytest
from click.testing import CliRunner
from hubserver import HubServer

from ggq.cli.main import cli
from ggq.errors import HubProblem
from ggq.hub import client

pytestmark = pytest.mark.hub


@pytest.mark.parametrize("card", ["a text", 5, ["mit"], True])
def test_a_card_that_is_no_object(hub: HubServer, card: object) -> None:
    hub.add_repo("org/tiny", {"config.json": b"{}"}, card=cast("dict[str, Any]", card))
    found = CliRunner().invoke(cli, ["inspect", "org/tiny"])
    assert found.exit_code == 0 and "config.json" in found.stdout, found.stderr


def test_an_error_whose_body_is_a_text() -> None:
    import huggingface_hub.utils as utils

    request = utils.httpx.Request("GET", "http://127.0.0.1/api/models/a/b")
    answer = utils.httpx.Response(404, request=request, json="x", headers={"X-Error-Code": "EntryNotFound"})
    with pytest.raises(HubProblem), client.explained("a/b"):
        utils.hf_raise_for_status(answer)


def test_a_fault_of_ggq_s_own_is_not_the_hub_s() -> None:
    with pytest.raises(TypeError), client.explained("a/b"):
        raise TypeError("ours")
