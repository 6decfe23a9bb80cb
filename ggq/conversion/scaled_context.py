"""A model whose context is scaled, compared at positions beyond its original context.

Some tokens stand at the beginning and some far behind, so that a short prompt gets there. Compared are the
logits of the far ones, and by what each side turns its queries and keys: an error in a few slow dimensions
hardly moves the logits of a short prompt, and the rotation itself shows it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggq.errors import ConversionProblem
from ggq.llamacpp.rotations import Rotation

# Of no scaled context: these say with which share of the dimensions, and how fast, a model turns.
_PLAIN = (None, "default", "proportional", "mrope")
_DYNAMIC = "dynamic"
# A rotation's rounding in float32, measured: 1e-7 of the angle. Some configs have four digits of a factor.
_ABSOLUTE, _PER_ANGLE = 2e-4, 3e-6
_KNOWN: Mapping[tuple[str, ...], str] = {
    ("truncate",): "llama.cpp rounds the range of dimensions that YaRN blends, and the checkpoint does not",
    ("beta_fast", "beta_slow"): "llama.cpp takes YaRN's beta_fast for 32 and beta_slow for 1 in this "
    "architecture; give it --yarn-beta-fast and --yarn-beta-slow with the checkpoint's values",
}


@dataclass(frozen=True)
class Scaled:
    """How a context is scaled: ``kind`` in transformers' words; the tokens of the ``original`` one."""

    kind: str
    original: int

    def position(self, count: int) -> int:
        """Where the far tokens begin, of a prompt of ``count``."""
        return max(self.original + self.original // 2, self.original + count)


@dataclass(frozen=True)
class Far:
    """What transformers computes when the tokens behind the first ``near`` stand at ``position`` and beyond.

    ``logits``: None where it cannot see such a text, or ``why_not``. Rotations are complex factors, tokens ×
    pairs: ``layers`` by number, ``others`` of a model that does not tell them apart; ``known``: by words,
    what they would be if some settings were others.
    """

    scaled: Scaled
    near: int
    position: int
    logits: Any = None
    layers: Mapping[int, Any] = field(default_factory=dict)
    others: Sequence[Any] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    why_not: str = ""

    @property
    def has_fixed_factors(self) -> bool:
        """False for a model that changes its factors with the length of the text: llama.cpp has no such."""
        return self.scaled.kind != _DYNAMIC


def scaled(config: Any) -> Scaled | None:
    """The scaling of a text model's config; None for one that has none."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping):
        return None
    context = getattr(config, "max_position_embeddings", None)
    for part in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        kind = part.get("rope_type")
        if kind in _PLAIN:
            continue
        original = part.get("original_max_position_embeddings")
        if kind == _DYNAMIC or not isinstance(original, int):
            original = context
            if kind == "linear" and context and part.get("factor"):
                original = int(context / part["factor"])
        if isinstance(original, int) and original > 0:
            return Scaled(str(kind), original)
    return None


def reference(model: Any, tokens: Sequence[int], how: Scaled) -> Far:
    """What transformers computes of ``tokens`` with a gap of positions. Raises what transformers raises."""
    import torch

    near, position = len(tokens) // 2, how.position(len(tokens))
    config = model.config.get_text_config()
    places = [*range(near), *range(position, position + len(tokens) - near)]
    eyes = _Eyes(model)
    logits, mask = None, _mask(config, places, near)
    inputs = {"input_ids": torch.tensor([list(tokens)]), "position_ids": torch.tensor([places])}
    try:
        with torch.inference_mode():
            made = model(**inputs, use_cache=False, **({"attention_mask": mask} if mask is not None else {}))
        if mask is not None:
            logits = made.logits[0].float().numpy()
    finally:
        eyes.close()
    first = places[: near + 1]
    layers = {number: turns[: near + 1] for number, turns in eyes.layers.items()}
    others = [turns[: near + 1] for turns in eyes.others]
    return Far(how, near, position, logits, layers, others, _known(config, first))


def _mask(config: Any, places: Sequence[int], near: int) -> Any:
    """Every token sees what is before it, but the first far one only itself; a mapping for a model with
    windows; None for one whose layers do not all work by such masks."""
    import numpy as np
    import torch

    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if not kinds <= {"full_attention", "sliding_attention"}:
        return None
    allowed = np.tril(np.ones((len(places), len(places)), bool))
    allowed[near, :near] = False

    def additive(seen: Any) -> Any:
        return torch.where(torch.from_numpy(seen), 0.0, torch.finfo(torch.float32).min)[None, None]

    if "sliding_attention" in kinds:
        distance = np.subtract.outer(np.array(places), np.array(places))
        return {
            "full_attention": additive(allowed),
            "sliding_attention": additive(allowed & (distance < (window or 1 << 30))),
        }
    if isinstance(window, int) and window < places[-1] and getattr(config, "use_sliding_window", True):
        return None  # where llama.cpp has no such window, the two would differ for that alone
    return additive(allowed)


class _Eyes:
    """Sees the rotations that go by in a transformers model until it is closed."""

    def __init__(self, model: Any) -> None:
        self.layers: dict[int, Any] = {}
        self.others: list[Any] = []
        self._hooks: list[Any] = []
        for module in model.modules():
            number = getattr(module, "layer_idx", None)
            if isinstance(number, int):
                see = self._layer(number)
                self._hooks.append(module.register_forward_pre_hook(see, with_kwargs=True))
            if "Rotary" in type(module).__name__:
                self._hooks.append(module.register_forward_hook(self._rotary))

    def _layer(self, number: int) -> Any:
        def see(_module: Any, _arguments: Any, named: Mapping[str, Any]) -> None:
            turns = _turns(named.get("position_embeddings"))
            if turns is not None:
                self.layers[number] = turns

        return see

    def _rotary(self, _module: Any, _arguments: Any, made: Any) -> None:
        turns = _turns(made)
        if turns is not None:
            self.others.append(turns)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _turns(made: Any) -> Any:
    """Complex factors, tokens × pairs, of what a rotary module gives; None for what is not that."""
    import numpy as np
    import torch

    if isinstance(made, torch.Tensor) and made.is_complex():
        found = made.numpy()
    elif isinstance(made, tuple) and len(made) == 2 and all(isinstance(it, torch.Tensor) for it in made):
        found = made[0].float().numpy().astype(np.float64) + 1j * made[1].float().numpy()
    else:
        return None
    while found.ndim > 2:
        found = found[0]  # the batch; and of a text all axes of a picture are the same
    half = found.shape[1] // 2
    if half and found.shape[1] % 2 == 0:
        if np.array_equal(found[:, :half], found[:, half:]):
            return found[:, :half]
        if np.array_equal(found[:, 0::2], found[:, 1::2]):
            return found[:, 0::2]
    return found


def _known(config: Any, places: Sequence[int]) -> dict[str, Any]:
    """The rotations without settings of YaRN that llama.cpp may not have, by words."""
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope.get("rope_type") != "yarn":
        return {}
    usual = {"truncate": True, "beta_fast": 32, "beta_slow": 1}
    other = {key for key, value in usual.items() if rope.get(key) not in (None, value)}
    groups = [keys for keys in _KNOWN if other & set(keys)]
    choices = [[group] for group in groups] + ([groups] if groups[1:] else [])
    found: dict[str, Any] = {}
    for choice in choices:
        changed = copy.deepcopy(config)
        for key in (key for keys in choice for key in keys):
            changed.rope_parameters.pop(key, None)
        frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](changed)
        angles = np.outer(np.array(places, np.float64), frequencies.numpy())
        found["; ".join(_KNOWN[keys] for keys in choice)] = scale * np.exp(1j * angles)
    return found


# --- both sides ------------------------------------------------------------------------------------------


def compare(far: Far, rotations: Sequence[Rotation]) -> dict[str, Any]:
    """How many rotations are the checkpoint's (``turned``), and how one that is not differs."""
    if not rotations or not (far.layers or far.others):
        whose = "llama.cpp's" if not rotations else "transformers'"
        return {"turned": 0, "turned_why_not": f"{whose} rotations were not seen"}
    places = [*range(far.near), far.position]
    found: dict[str, Any] = {"turned": 0}
    for rotation in rotations:
        own = far.layers.get(rotation.layer) if rotation.layer is not None else None
        candidates = [own] if own is not None else [*far.others, *far.layers.values()]
        fitting = [it for it in candidates if it.shape == rotation.factors.shape]
        if not fitting:
            return {"turned": 0, "turned_why_not": "the two turn another number of dimensions"}
        differing = min(
            (_differing(it, rotation.factors, places) for it in fitting), key=lambda it: it["pairs"]
        )
        if not differing["pairs"]:
            found["turned"] += 1
            continue
        known = [
            words
            for words, it in far.known.items()
            if it.shape == rotation.factors.shape and not _differing(it, rotation.factors, places)["pairs"]
        ]
        if known:
            found["known"] = known[0]
        else:
            return {**found, "differing": {**differing, "position": far.position}}
    return found


def _differing(expected: Any, found: Any, places: Sequence[int]) -> dict[str, Any]:
    """How many pairs of dimensions are turned otherwise, and the factors on their length. Of a pair that is
    0 before it is turned (not a number in ``found``) nothing is known."""
    import numpy as np

    positions = np.array(places, np.float64)[:, None]
    angle = np.abs(np.angle(expected[1] * np.conj(expected[0])))  # of one position
    length = np.maximum(np.abs(expected), np.finfo(np.float64).tiny)
    wrong = np.abs(found - expected) / length > _ABSOLUTE + _PER_ANGLE * positions * angle[None, :]
    return {
        "pairs": int(wrong.any(axis=0).sum()),
        "of": int(expected.shape[1]),
        "expected_length": float(np.median(np.abs(expected))),
        "length": float(np.nanmedian(np.abs(found))),
    }


def verdict_of_logits(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was found, if its logits must be the checkpoint's: not where a difference is known and told."""
    return {} if found.get("known") else found


def require_same(found: Mapping[str, Any]) -> None:
    """Raises ConversionProblem when the rotations, or what they lead to, are not the checkpoint's."""
    if found.get("not_finite"):
        raise ConversionProblem(
            "The model computes values that are not numbers.",
            f"Beyond its original context {found['not_finite']} logits hold NaN or infinity.",
            "Try another --outtype (bf16 or f32 instead of f16).",
        )
    wrong = found.get("differing")
    if wrong and found["kind"] != _DYNAMIC:
        raise ConversionProblem(
            "The GGUF's positions are not the checkpoint's.",
            f"Its context is scaled ({found['kind']}, original {found['original']} tokens). At position "
            f"{wrong['position']} llama.cpp turns {wrong['pairs']} of {wrong['of']} pairs of dimensions "
            f"otherwise than transformers, with the factor {wrong['length']:.4f} (transformers: "
            f"{wrong['expected_length']:.4f}).",
            "llama.cpp does not scale this model as its config says. Report it, with the model's name; "
            "--verify off keeps the file as it is.",
        )


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What a person should know of a long context that was compared, or was not."""
    if not found:
        return []
    original = found["original"]
    told = []
    if found.get("known"):
        cosine = f" (beyond {original} tokens the cosine of the logits is {found['cosine']:.4f})"
        told.append(
            f"the rotary frequencies differ from transformers'{cosine if 'cosine' in found else ''}: "
            f"{found['known']}"
        )
    if found["kind"] == _DYNAMIC and found.get("differing"):
        told.append(
            f"beyond {original} tokens transformers stretches the rotary frequencies with the length of the "
            "text (dynamic NTK), and llama.cpp does not: the two agree up to there only"
        )
    for key, what in (("why_not", "it was"), ("logits_why_not", "its logits were"),
                      ("turned_why_not", "its rotary frequencies were")):  # fmt: skip
        if found.get(key):
            told.append(f"beyond its original context of {original} tokens {what} not compared: {found[key]}")
    return told
