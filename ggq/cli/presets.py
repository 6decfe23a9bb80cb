"""``ggq presets``: the named quantizations, and what to expect of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.presets import catalogue as catalogues
from ggq.presets.catalogue import Catalogue, Preset
from ggq.presets.published_kld import PublishedFigures, PublishedKld


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--presets", "presets_file", type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file with presets of your own (also: GGQ_PRESETS).",
)  # fmt: skip
@output_options
def presets(names: tuple[str, ...], presets_file: Path | None, out: Output) -> None:
    """List the presets, or those that are named; of a single one say all.

    \b
    ggq presets
    ggq presets k-quants
    ggq presets q4_k_m
    """
    catalogue = catalogues.load(presets_file)
    chosen = catalogue.resolve(names) if names else list(catalogue.presets)
    out.result({"presets": chosen, "groups": catalogue.groups})
    if len(chosen) == 1:
        _show(chosen[0], catalogue, out)
    else:
        _list(chosen, catalogue, out)


def _list(chosen: Sequence[Preset], catalogue: Catalogue, out: Output) -> None:
    out.table(
        ["preset", "bits", "KLD", "imatrix", "use"],
        [
            [
                preset.name,
                f"{preset.bits_per_weight:.2f}" if preset.bits_per_weight else "",
                _kld(preset.published),
                "needed" if preset.needs_imatrix else "",
                preset.use,
            ]
            for preset in chosen
        ],
        right=(1, 2),
    )
    out.text()
    every = [preset.published for preset in chosen if preset.published]
    if every:
        out.paragraph(
            "KLD: published mean KL divergence from 16 bits, not measured here; i: with an imatrix."
            " Expect another on another model. Sources:"
        )
        for model, source in dict.fromkeys((published.model, published.source) for published in every):
            out.paragraph(f"{model}: {source}", indent=2)
    for group, members in catalogue.groups.items():
        out.paragraph(f"{group}: {' '.join(members)}")


def _show(preset: Preset, catalogue: Catalogue, out: Output) -> None:
    published = preset.published
    groups = [group for group, members in catalogue.groups.items() if preset.name in members]
    bits = f"{preset.bits_per_weight} ({preset.bits_source or preset.defined_in})"
    pairs = [
        ("preset", preset.name),
        ("also called", ", ".join(preset.aliases)),
        ("groups", ", ".join(groups)),
        ("summary", preset.summary),
        ("use", preset.use),
        ("bits/weight", bits if preset.bits_per_weight else ""),
        ("imatrix", "needed" if preset.needs_imatrix else "not needed"),
        ("tensor types", ", ".join(f"{name}={kind}" for name, kind in preset.tensor_types.items())),
        ("llama-quantize", preset.ftype),
        ("defined in", preset.defined_in),
    ]
    if published:
        pairs += [
            ("published", f"for {published.model}, not measured here"),
            ("  KL divergence", _both(published.mean_kld, published.mean_kld_imatrix)),
            ("  of others", ", ".join(map(_of_other, published.klds[published.mean_kld is not None :]))),
            ("  perplexity", _both(published.ppl_increase, published.ppl_increase_imatrix, "+")),
            ("  source", published.source),
        ]
    out.fields([(name, value) for name, value in pairs if value])


def _kld(published: PublishedFigures | None) -> str:
    if published is None:
        return ""
    if published.mean_kld is not None:
        return f"{published.mean_kld:#.3g}  "
    return f"{published.mean_kld_imatrix:#.3g} i" if published.mean_kld_imatrix is not None else ""


def _of_other(published: PublishedKld) -> str:
    return f"{published.model} {'ln of PPL ratio ' * published.of_perplexity}{published.kld:.2g}"


def _both(plain: float | None, imatrix: float | None, sign: str = "") -> str:
    words = [f"{sign}{plain:.4g}"] if plain is not None else []
    if imatrix is not None:
        words.append(f"{sign}{imatrix:.4g} with an imatrix")
    return ", ".join(words)
