"""Experts that an imatrix hardly knows: too few tokens of its text went to them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggq.quantization.imatrix_file import Importance

# Of the tokens that an expert would meet if all met as many: with fewer its sums are mostly chance.
_THIN_SHARE = 0.05
_BLOCK = re.compile(r"(blk\.\d+)\.")
_SHOWN = 3


@dataclass(frozen=True)
class ThinExpert:
    """An expert of ``block`` (None: a tensor that has no experts), which met ``tokens``; its ``tensors``;
    ``usual``: tokens for each expert of the block on average."""

    block: str
    expert: int | None
    tokens: int
    usual: float
    tensors: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.tensors[0] if self.expert is None else f"expert {self.expert} of {self.block}"


def look(matrix: Importance) -> tuple[ThinExpert, ...]:
    """Those that met no token, or much fewer than the others of their block; the fewest first."""
    found: dict[tuple[str, int | None, int, float], list[str]] = {}
    for name in matrix.counts:
        met = matrix.tokens_met(name)
        usual = sum(met) / len(met)
        block = _BLOCK.match(name)
        for expert, tokens in enumerate(met):
            if not tokens or tokens < _THIN_SHARE * usual:
                if len(met) == 1 or block is None:
                    found[name, None, tokens, usual] = [name]
                else:
                    found.setdefault((block[1], expert, tokens, usual), []).append(name)
    thin = (ThinExpert(*key, tuple(names)) for key, names in found.items())
    return tuple(sorted(thin, key=lambda it: (it.tokens, it.block, it.expert or 0)))


def words(found: tuple[ThinExpert, ...], tokens: int) -> str:
    """For a person, with numbers; ``tokens``: of the text, that were read. Empty where none is thin."""
    if not found:
        return ""
    shown = "; ".join(
        f"{it.name} met {it.tokens:,} of {tokens:,} tokens"
        + (f" ({it.usual:,.0f} on average)" if it.usual else "")
        for it in found[:_SHOWN]
    )
    more = f"; {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return (
        f"Some experts met hardly any token of the text: {shown}{more}. What the matrix says of them is"
        " mostly chance; a longer text, of other kinds too, reaches more of them."
    )
