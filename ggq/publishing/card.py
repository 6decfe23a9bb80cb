"""The model card of a repository of GGUFs, as the community writes them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ggq.measurement import tables
from ggq.publishing.choice import Choice
from ggq.publishing.collection import Collection, Measured, machine_name
from ggq.publishing.release import Quant, Release
from ggq.system import files

MARKER = "<!-- Written by ggq from what it made and measured. -->"
_STEERS_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")


@dataclass(frozen=True)
class Words:
    """What the publisher says of the files himself; empty: what is known is taken."""

    title: str = ""
    author: str = ""
    quantized_by: str = ""
    base_model: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurements:
    """What was measured of the release's model, and the choices by it."""

    found: Collection | None
    choices: Sequence[Choice]

    def machine(self, release: Release) -> str | None:
        """The id of the machine on which most of the files were measured."""
        names = {path.name for quant in release.quants for path in quant.paths}
        counted = Counter(it.machine for it in self._all if it.row.file_name in names)
        return counted.most_common(1)[0][0] if counted else None

    def of(self, quant: Quant, machine: str | None) -> Measured | None:
        name = quant.paths[0].name
        return next((it for it in self._all if it.row.file_name == name and it.machine == machine), None)

    @property
    def _all(self) -> Sequence[Measured]:
        return self.found.measured if self.found else ()


def matter(release: Release, repo_id: str, words: Words, *, with_imatrix: bool) -> dict[str, Any]:
    """The front matter's entries."""
    origin = release.origin
    license = words.license or origin.license
    tags = ["gguf", "llama.cpp", "quantized", *(["imatrix"] if with_imatrix else [])]
    architecture = release.quants[0].gguf.architecture
    extra = [architecture] if architecture else []
    return {
        "base_model": words.base_model or origin.repo_id,
        "base_model_relation": "quantized" if words.base_model or origin.repo_id else None,
        "quantized_by": words.quantized_by or repo_id.split("/")[0],
        "model_name": words.title or origin.name,
        "model_creator": words.author or origin.author,
        "license": license,
        "license_name": origin.license_name if license == origin.license else None,
        "license_link": origin.license_link if license == origin.license else None,
        "language": list(origin.languages),
        "pipeline_tag": origin.pipeline_tag,
        "tags": list(dict.fromkeys([*tags, *extra, *words.tags, *origin.tags])),
    }


def body(
    release: Release,
    repo_id: str,
    words: Words,
    measured: Measurements,
    places: Mapping[str, str],
    commands: Sequence[str],
) -> str:
    """The card below its front matter. ``places``: where each file is in the repository (a
    folder, of a split one), by its stem; ``commands``: that make the files again."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ggq.publishing", "page"),
        autoescape=False,  # it is no HTML: filters of our own below
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": markdown, "code": _code, "fenced": _fenced, "url": quote}
    machine = measured.machine(release)
    columns, rows = _table(release, measured, machine, places)
    own = {path.name for quant in release.quants for path in quant.paths}
    text = environment.get_template("card.md.j2").render(
        marker=MARKER,
        title=words.title or release.origin.name,
        base_link=_base_link(release, words),
        is_measured=machine is not None,
        choices=[_shown(it, measured) for it in measured.choices if it.chosen.row.file_name in own],
        columns=columns,
        rows=rows,
        legend=list(_legend(release, measured, machine)),
        beside=[(path.name, _what(path.name)) for path in release.beside],
        run=_run(release, repo_id, places),
        made=list(_made(release)),
        commands=commands,
        block=256,
        fallen=[(quant.preset, _fallen(quant)) for quant in release.quants if quant.fallen],
        licence=_licence(release, words),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


# --- words that come from others -------------------------------------------------------------------------


def markdown(text: str) -> str:
    """A text as Markdown shows it: as it is."""
    return _STEERS_MARKDOWN.sub(r"\\\1", _line(text))


def _code(text: str) -> str:
    return _line(text).replace("`", "'").replace("|", "")


def _fenced(text: str) -> str:
    return _line(text).replace("```", "'''")


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


# --- parts -----------------------------------------------------------------------------------------------


def _base_link(release: Release, words: Words) -> str:
    repo_id = words.base_model or release.origin.repo_id
    if repo_id is None:
        return markdown(release.origin.name)
    return f"[{markdown(repo_id)}](https://huggingface.co/{quote(repo_id)})"


def _table(
    release: Release, measured: Measurements, machine: str | None, places: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    columns = ["file", "bits", "size", "KLD", "PPL", "t/s"]
    rows = []
    for quant in release.quants:
        it = measured.of(quant, machine)
        place = places[quant.stem]
        rows.append(
            [
                f"[{markdown(quant.preset)}]({quote(_from_page(quant, place))})",
                f"{quant.gguf.bits_per_weight:.2f}",
                files.human_bytes(quant.gguf.file_bytes),
                tables.relative(it.row.mean_kld) if it else tables.MISSING,
                tables.perplexity(it.row.perplexity) if it else tables.MISSING,
                tables.plus_minus(it.row.generation_tokens_per_s, 2) if it else tables.MISSING,
            ]
        )
    kept = [index for index in range(len(columns)) if any(row[index] != tables.MISSING for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _from_page(quant: Quant, place: str) -> str:
    """The address of a file, or of the folder of its shards, from the card's page."""
    return place if place == quant.paths[0].name else f"tree/main/{place}"


def _legend(release: Release, measured: Measurements, machine: str | None) -> Iterator[str]:
    if machine is None or measured.found is None:
        return
    known = [it for quant in release.quants if (it := measured.of(quant, machine))]
    ground = next((it.ground for it in known if it.ground and it.row.mean_kld), None)
    if ground:
        yield (
            f"KLD: mean KL divergence from {ground.base}, in nats per token; PPL: perplexity. Both on"
            f" {ground.text}, {ground.chunks} chunks of {ground.context_tokens} tokens, ± a standard error."
        )
    if any(it.row.generation_tokens_per_s for it in known):
        environment = measured.found.machines[machine]
        commit = environment.get("llama_cpp_commit")
        yield f"t/s: tokens generated per second on {machine_name(environment)}, with llama.cpp {commit}."


def _shown(it: Choice, measured: Measurements) -> dict[str, Any]:
    environment = measured.found.machines[it.machine] if measured.found else {}
    return {
        "chosen": it.chosen,
        "reasons": it.reasons,
        "others": it.others,
        "where": machine_name(environment),
    }


def _what(name: str) -> str:
    if "imatrix" in name:
        return "the imatrix that they were made with."
    return "the projector for images or sound." if "mmproj" in name.lower() else "belongs to them."


def _run(release: Release, repo_id: str, places: Mapping[str, str]) -> list[str]:
    usual = next((it for it in release.quants if it.preset == "Q4_K_M"), release.quants[-1])
    tag = shlex.quote(f"{repo_id}:{usual.preset}")
    place = places[usual.stem]
    whole = place == usual.paths[0].name
    what = shlex.quote(place) if whole else f"--include {shlex.quote(place + '/*')}"
    return [
        f"llama-server -hf {tag}",
        f"ollama run hf.co/{tag}" if whole else "# Ollama cannot pull a split file.",
        f"hf download {shlex.quote(repo_id)} {what} --local-dir .",
    ]


def _made(release: Release) -> Iterator[str]:
    origin = release.origin
    tools = sorted({it.tool for it in release.steps.values()})
    if tools:
        yield f"With {markdown('; '.join(tools))}."
    if origin.commit:
        yield f"From commit `{_code(origin.commit)}` of {markdown(origin.repo_id or origin.name)}."
    convert = release.steps.get("convert")
    if convert and (cosine := convert.findings.get("logits_cosine")) is not None:
        yield f"The 16-bit GGUF was compared with the checkpoint: cosine of their logits {cosine:.6f}."
    for name, step in release.steps.items():
        if name.startswith("imatrix") and "text_name" in step.findings:
            found = step.findings
            yield (
                f"imatrix of {markdown(str(found['text_name']))}: {found.get('chunks')} chunks,"
                f" {found.get('tokens'):,} tokens; sha256 `{_code(step.inputs.get('text', '?'))}`."
            )
    strange = [it.preset for it in release.quants if it.step is None]
    if strange and release.steps:
        yield f"{markdown(', '.join(strange))}: not made by ggq."
    if not release.steps:
        yield "ggq did not make them: what made them is not known."


def _fallen(quant: Quant) -> str:
    return ", ".join(f"`{_code(name)}` is {kind}" for name, kind in sorted(quant.fallen.items()))


def _licence(release: Release, words: Words) -> str:
    license = words.license or release.origin.license
    if license is None:
        return "The model names no licence."
    name = release.origin.license_name
    link = release.origin.license_link
    shown = f"{name} ({license})" if name and license == "other" else license
    return f"As the model's: {shown}." + (f" Its text: {link}" if link else "")
