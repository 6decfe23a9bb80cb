"""Presets: the named quantizations of ``presets/*.toml``, and a user's own beside them."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ggq.errors import UsageProblem
from ggq.gguf import tensor_types as ggml_types
from ggq.presets.published_kld import PublishedFigures, PublishedKld
from ggq.system import package_data, places

ENVIRONMENT = "GGQ_PRESETS"
_SHIPPED = ("k-quants", "legacy", "i-quants", "other")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LOSSES = ("mean_kld", "ppl_increase", "mean_kld_imatrix", "ppl_increase_imatrix")
_OF_OTHERS = ("mean_kld_of_others", "ppl_of_others")
_EXPECTED = {
    str: "a text", dict: "a table", list: "a list", float: "a number", int: "a whole number",
    bool: "true or false",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A named quantization. ``ftype`` is llama-quantize's word; ``bits_per_weight`` is nominal, of a whole
    file; ``tensor_types`` gives tensors, by regular expression, a ggml type of their own."""

    name: str
    ftype: str
    summary: str
    use: str
    aliases: tuple[str, ...] = ()
    bits_per_weight: float | None = None
    bits_source: str | None = None
    needs_imatrix: bool = False
    published: PublishedFigures | None = None
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    defined_in: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """Every name it answers to."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Catalogue:
    """All presets, in their files' order, and the groups of their names."""

    presets: tuple[Preset, ...]
    groups: Mapping[str, tuple[str, ...]]
    own_file: Path | None = None  # that was named beside those that are always read

    def resolve(self, names: Iterable[str]) -> list[Preset]:
        """Presets for names in any case, groups, and lists (``"q4_k_m,Q8_0"``): in order, each once.

        Raises UsageProblem for a name that nothing has, and when there is no name at all.
        """
        presets = {word.upper(): preset for preset in self.presets for word in preset.words}
        groups = {name.upper(): members for name, members in self.groups.items()}
        chosen: dict[str, Preset] = {}
        for name in (part for text in names for part in re.split(r"[,\s]+", text) if part):
            for member in groups.get(name.upper(), (name,)):
                preset = presets.get(member.upper())
                if preset is None:
                    raise self._unknown(name)
                chosen[preset.name] = preset
        if not chosen:
            raise UsageProblem("No preset is named.", "", "`ggq presets` lists them.")
        return list(chosen.values())

    def _unknown(self, name: str) -> UsageProblem:
        words = [*self.groups, *(word for preset in self.presets for word in preset.words)]
        known = {word.upper(): word for word in words}
        near = difflib.get_close_matches(name.upper(), known, n=1)
        hint = f"Did you mean {known[near[0]]}?" if near else ""
        return UsageProblem(f"There is no preset {name!r}.", hint, "`ggq presets` lists them.")


def load(extra: Path | None = None) -> Catalogue:
    """The presets that ggq ships, then those of the file that GGQ_PRESETS names, then those of ``extra``.

    Raises UsageProblem (file, line, key, and what was expected) for a file that is wrong.
    """
    gathered = _Gathered()
    for name in _SHIPPED:
        gathered.add(_File(package_data.data("presets", f"{name}.toml")))
    named = os.environ.get(ENVIRONMENT)
    own = [places.expanded(str(path)) for path in (named, extra) if path]
    gathered.ftypes = {preset.ftype for preset in gathered.presets.values()}
    for path in dict.fromkeys(path.resolve() for path in own):
        gathered.add(_File(path))
    return Catalogue(tuple(gathered.presets.values()), gathered.groups, extra)


class _Gathered:
    """Presets and groups of one file after the other. ``ftypes``: the words of llama-quantize that a file may
    use; None while ggq's own files are read, which define them. ``models``: whose losses were published."""

    def __init__(self) -> None:
        self.models: dict[str, _Model] = {}
        self.presets: dict[str, Preset] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.ftypes: set[str] | None = None
        self._owners: dict[str, Path] = {}

    def add(self, file: _File) -> None:
        root = _Table(file, (), file.document)
        root.refuse_other_keys("sources", "models", "groups", "preset")
        sources = root.table("sources")
        for name in sources.values:
            sources.get(name, str)
        models = root.table("models")
        for name in models.values:
            self.models[name] = _model(models.table(name), sources)
        own = root.table("preset")
        for name in own.values:
            preset = _preset(name, own.table(name), sources, self.models, self.ftypes)
            for word in preset.words:
                self._claim(word, own, name)
            self.presets[name] = preset
        words = {word.upper() for preset in self.presets.values() for word in preset.words}
        groups = root.table("groups")
        for name in groups.values:
            self._claim(name, groups, name)
            members = groups.texts(name)
            for member in members:
                if member.upper() not in words:
                    groups.fail(name, "the names of presets", member)
            self.groups[name] = members

    def _claim(self, word: str, table: _Table, key: str) -> None:
        if not _NAME.fullmatch(word):
            table.fail(key, "a name of letters, digits and `_.-`", word)
        if owner := self._owners.get(word.upper()):
            table.fail(key, f"a name that {owner} does not define already", word)
        self._owners[word.upper()] = table.file.path


def _preset(
    name: str, table: _Table, sources: _Table, models: Mapping[str, _Model], ftypes: set[str] | None
) -> Preset:
    table.refuse_other_keys(
        "ftype",
        "summary",
        "use",
        "aliases",
        "bits_per_weight",
        "bits_source",
        "needs_imatrix",
        "published",
        "tensor_types",
    )
    ftype: str = table.get("ftype", str).upper()
    if ftypes is not None and ftype not in ftypes:
        near = difflib.get_close_matches(ftype, ftypes, n=1)
        hint = f", perhaps {near[0]}" if near else ""
        table.fail("ftype", f"a type that llama-quantize offers{hint}", ftype)
    bits = table.get("bits_per_weight", float, None)
    if bits is not None and not 0 < bits <= 64:
        table.fail("bits_per_weight", "a number above 0 and up to 64", bits)
    return Preset(
        name=name,
        ftype=ftype,
        summary=table.get("summary", str),
        use=table.get("use", str),
        aliases=table.texts("aliases"),
        bits_per_weight=bits,
        bits_source=_source(table, "bits_source", sources) if "bits_source" in table.values else None,
        needs_imatrix=table.get("needs_imatrix", bool, False),
        published=_published(table.table("published"), sources, models)
        if "published" in table.values
        else None,
        tensor_types=_tensor_types(table.table("tensor_types")),
        defined_in=str(table.file.path),
    )


@dataclass(frozen=True)
class _Model:
    """An entry of [models]. ``ppl``: of 16 bits."""

    parameter_count: int
    source: str
    ppl: float | None
    complete: bool


def _model(table: _Table, sources: _Table) -> _Model:
    table.refuse_other_keys("parameters", "source", "ppl", "complete")
    parameters, ppl = table.get("parameters", int), table.get("ppl", float, None)
    for key, value in (("parameters", parameters), ("ppl", ppl)):
        if value is not None and value <= 0:
            table.fail(key, "a number above 0", value)
    return _Model(parameters, _source(table, "source", sources), ppl, table.get("complete", bool, False))


def _published(table: _Table, sources: _Table, models: Mapping[str, _Model]) -> PublishedFigures:
    table.refuse_other_keys("model", "source", *_OF_OTHERS, *_LOSSES)
    losses = {key: table.get(key, float, None) for key in _LOSSES}
    model, source = table.get("model", str), _source(table, "source", sources)
    published = []
    if losses["mean_kld"] is not None:
        size = models[model].parameter_count if model in models else None
        published.append(PublishedKld(model, source, losses["mean_kld"], size))
    for key in _OF_OTHERS:
        others = table.table(key)
        for name in others.values:
            published.append(_of_other(others, name, models, of_perplexity=key == _OF_OTHERS[1]))
    return PublishedFigures(model, source, **losses, klds=tuple(published))


def _of_other(
    others: _Table, name: str, models: Mapping[str, _Model], *, of_perplexity: bool
) -> PublishedKld:
    value, model = others.get(name, float), models.get(name)
    if model is None or (of_perplexity and model.ppl is None):
        others.fail(name, f"the name of an entry of [models]{' with `ppl`' * of_perplexity}", name)
    if of_perplexity:
        assert model.ppl is not None
        if value <= 0:
            others.fail(name, "a number above 0", value)
        value = math.log(value / model.ppl)
    return PublishedKld(name, model.source, value, model.parameter_count, of_perplexity, model.complete)


def _source(table: _Table, key: str, sources: _Table) -> str:
    name = table.get(key, str)
    if name not in sources.values:
        table.fail(key, "the name of an entry of [sources]", name)
    return str(sources.values[name])


def _tensor_types(table: _Table) -> dict[str, str]:
    types = {pattern: table.get(pattern, str) for pattern in table.values}
    for pattern, kind in types.items():
        try:
            re.compile(pattern)
        except re.error as error:
            table.fail(pattern, f"a regular expression ({error})", pattern)
        if kind.upper() not in ggml_types.by_name():
            table.fail(pattern, "a type of ggml, such as q8_0", kind)
    return types


class _File:
    """A presets file, parsed as TOML."""

    def __init__(self, path: Path) -> None:
        import tomllib

        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.document: dict[str, Any] = tomllib.loads(self.text)
        except OSError as error:
            raise UsageProblem(
                f"The presets file {path} cannot be read.",
                f"{error.strerror}.",
                f"Check the path given with --presets or in {ENVIRONMENT}.",
            ) from error
        except UnicodeDecodeError as error:
            raise UsageProblem(
                f"The presets file {path} is not a text in UTF-8.",
                f"Byte {error.start} is not part of one.",
                "Save it as UTF-8.",
            ) from error
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageProblem(
                f"The presets file {path} is not TOML.", f"{error}.", "Fix that line."
            ) from error


@dataclass(frozen=True)
class _Table:
    """A table of a presets file. ``where``: the keys that lead to it, as ("preset", "MINE")."""

    file: _File
    where: tuple[str, ...]
    values: Mapping[str, Any]

    def get(self, key: str, of: type, *default: Any) -> Any:
        """A value of one type; the default, if there is one, when it is absent."""
        if key not in self.values:
            if default:
                return default[0]
            self.fail(None, f"the key `{key}`, {_EXPECTED[of]}")
        value = self.values[key]
        accepted = (int, float) if of is float else of
        if not isinstance(value, accepted) or (isinstance(value, bool) and of is not bool):
            self.fail(key, _EXPECTED[of], value)
        return value

    def table(self, key: str) -> _Table:
        """A table in this one; empty when it is absent."""
        return _Table(self.file, (*self.where, key), self.get(key, dict, {}))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when it is absent."""
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            self.fail(key, "a list of texts", values)
        return tuple(values)

    def refuse_other_keys(self, *known: str) -> None:
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                self.fail(key, f"`{near[0]}`" if near else f"one of {', '.join(known)}", key)

    def fail(self, key: str | None, expected: str, *found: Any) -> NoReturn:
        """Refuse the file for what stands at ``key`` (None: for what is not in this table)."""
        where = self.where if key is None else (*self.where, key)
        instead = f"; found {found[0]!r}" if found else ""
        raise UsageProblem(
            f"The presets file {self.file.path} is wrong in line {_line_of(self.file.text, where)}, "
            f"at {'.'.join(where)}.",
            f"Expected {expected}{instead}.",
            "Fix that line; presets/k-quants.toml of ggq explains the keys.",
        )


def _line_of(text: str, where: tuple[str, ...]) -> int:
    """The line (from 1) on which the key path ``where`` most likely stands.

    TOML parsers do not tell; so each part of the path is searched for, from where the one before was found.
    """
    position = 0
    for key in where:
        written = re.compile(rf"""(?<![\w-])["']?{re.escape(key)}["']?(?=\s*[=.\]])""")
        found = written.search(text, position) or re.compile(re.escape(key)).search(text, position)
        if found is None:
            break
        position = found.start()
    return text.count("\n", 0, position) + 1
