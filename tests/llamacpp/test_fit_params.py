"""What llama-fit-params proposes and llama-server tells of a projector, as it was captured."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggq.llamacpp import fit_params
from ggq.llamacpp.fit_params import Fit

CAPTURED = Path(__file__).with_name("captured")
MIB = 1 << 20


def lines(name: str) -> list[str]:
    return (CAPTURED / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize(
    ("name", "context_tokens", "found"),
    [
        ("fit_all", 4096, Fit(n_gpu_layers=-1, kept_layers=0)),
        ("fit_dense", 4096, Fit(n_gpu_layers=8, kept_layers=0)),
        ("fit_two_devices", 4096, Fit(n_gpu_layers=8, kept_layers=0)),
        # A part of the fourth layer's experts, and the layers after it; the ninth layer is the output.
        ("fit_experts", 512, Fit(n_gpu_layers=9, kept_layers=6)),
        ("fit_experts_two_devices", 512, Fit(n_gpu_layers=9, kept_layers=4)),
        ("fit_failed", 512, None),
        ("fit_dense", 8192, None),  # the context that was asked for is not to be changed
    ],
)
def test_what_is_proposed(name: str, context_tokens: int, found: Fit | None) -> None:
    assert fit_params.parse_fit(lines(name), context_tokens) == found


def test_experts_that_overflow_to_another_device_are_not_on_the_cpu() -> None:
    answer = r'-c 512 -ngl 9 -ts 4,5 -ot "blk\.3\.ffn_down.*=RPC1,blk\.8\.ffn_(up|down)_(ch|)exps=CPU"'
    assert fit_params.parse_fit([answer], 512) == Fit(n_gpu_layers=9, kept_layers=1)


def test_what_a_projector_takes() -> None:
    found = fit_params.parse_projector(lines("projector"))
    assert found == {"RPC0": pytest.approx(0.5 * MIB, abs=1), "CPU": pytest.approx(0.05 * MIB, abs=1)}
    assert fit_params.parse_projector(lines("fit_failed")) == {}
