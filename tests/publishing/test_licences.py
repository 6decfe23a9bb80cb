"""What a licence asks of who publishes."""

from __future__ import annotations

import pytest

from ggq.publishing.licences import Standing, judge


@pytest.mark.parametrize(
    ("license", "name", "standing"),
    [
        ("apache-2.0", None, Standing.FREE),
        ("MIT", None, Standing.FREE),
        ("cc-by-sa-4.0", None, Standing.FREE),
        ("llama3.1", None, Standing.CONDITIONS),
        ("gemma", None, Standing.CONDITIONS),
        ("cc-by-nc-4.0", None, Standing.CONDITIONS),
        ("cc-by-nc-nd-4.0", None, Standing.FORBIDDEN),
        ("cc-by-nd-4.0", None, Standing.FORBIDDEN),
        ("other", "some-research-license", Standing.UNKNOWN),
        ("unknown", None, Standing.UNKNOWN),
        (None, None, Standing.UNKNOWN),
        ("", None, Standing.UNKNOWN),
    ],
)
def test_standing(license: str | None, name: str | None, standing: Standing) -> None:
    verdict = judge(license, name)
    assert verdict.standing is standing
    assert bool(verdict.question) == (standing in (Standing.FORBIDDEN, Standing.UNKNOWN))
    assert bool(verdict.remark) == (standing is Standing.CONDITIONS)
