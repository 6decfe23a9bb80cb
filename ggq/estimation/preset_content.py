"""What presets make of a model by their tensors' types, and not by their names: presets that come out alike,
and the published KLD that fits what a file really holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ggq.estimation.estimator import PresetSize
from ggq.presets.catalogue import Catalogue, Preset
from ggq.presets.published_kld import PublishedKld


@dataclass(frozen=True)
class Expected:
    """What may be expected of a file. ``preset``: whose published KLDs these are (another one's where most
    of the file fell back to that one's type; None: there are none)."""

    preset: str | None
    published: PublishedKld | None = None
    others: tuple[PublishedKld, ...] = ()


def expected(preset: Preset, size: PresetSize, catalogue: Catalogue, parameter_count: int) -> Expected:
    """The published KLD of the preset; of a file that mostly fell back, that of the preset which is named
    after the type it mostly has; of one whose tensors all stay as they are, none."""
    given: Preset | None = preset
    if size.mostly_fell_back:
        given = next((it for it in catalogue.presets if it.name == it.ftype == size.main_type), None)
    elif not size.quantized_count and preset.ftype not in _UNQUANTIZED:
        given = None
    if given is None or given.published is None:
        return Expected(None)
    found = given.published.expected(parameter_count)
    others = given.published.others(parameter_count)
    return Expected(given.name if found or others else None, found, others)


_UNQUANTIZED = ("F32", "F16", "BF16", "COPY")


def alike(sizes: Mapping[str, PresetSize]) -> tuple[tuple[str, ...], ...]:
    """Presets, by name, that give every tensor the same type: their files hold the same weights."""
    groups: dict[str, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault(size.content, []).append(name)
    return tuple(tuple(names) for content, names in groups.items() if content and len(names) > 1)


def remarks(name: str, size: PresetSize, alike: Sequence[Sequence[str]]) -> Iterator[str]:
    """Sentences on what is not as the preset's name says."""
    if size.mostly_fell_back:
        yield (
            f"{size.fallback_count} of its {size.quantized_count} tensors fall back to another type, for this"
            f" model's rows do not divide by the preset's blocks: it is mostly {size.main_type}, of"
            f" {size.bits_per_weight:.2f} bits per weight."
        )
    for names in alike:
        if name in names:
            others = " and ".join(other for other in names if other != name)
            yield f"{others} would be the same: every tensor would have the same type."
