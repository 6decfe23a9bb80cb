"""How a checkpoint's weights are stored: plain floats, or packed by a method. Read from the tensors' names,
types and shapes; the config is only compared with that.

The layouts are those that each method's own library writes. What packs integers in a way that is not known
here is said to be unknown, and never counted as if it were plain.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# What the pinned converter dequantizes (ModelBase.dequant_model in conversion/base.py; mxfp4 in gpt_oss.py).
READABLE_QUANTIZATIONS = ("bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4")
# Where a config speaks of its quantization; the last is MLX's.
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
# A method of the tensors -> the methods of a config that store weights so, beside the one of the same name.
_WRITERS: Mapping[str, frozenset[str]] = {
    "fp8": frozenset({"compressed-tensors", "modelopt", "fbgemm_fp8", "quark"}),
    "int8": frozenset({"compressed-tensors", "modelopt", "quanto", "eetq", "torchao"}),
    "nvfp4": frozenset({"compressed-tensors", "modelopt"}),
    "gptq": frozenset({"auto-round", "auto_round", "intel/auto-round", "autoround"}),
    "awq": frozenset({"auto-round", "auto_round", "intel/auto-round", "autoround"}),
    "mxfp4": frozenset({"quark", "modelopt"}),
}
# Methods whose packed form is known here: a config that names one of them over plain floats is out of date.
_KNOWN = frozenset(
    {"aqlm", "awq", "bitnet", "bitsandbytes", "compressed-tensors", "eetq", "fbgemm_fp8", "fp8", "gptq",
     "hqq", "modelopt", "mxfp4", "quanto"}
)  # fmt: skip
# Main tensor's last word -> the method, for methods of which no more is read than that.
_OTHERS = {
    "W_q": "hqq", "_data": "quanto", "q_weight": "exl2", "q_groups": "exl2", "trellis": "exl3",
    "codes": "aqlm", "codebooks": "aqlm", "Qidxs": "quip", "B": "marlin", "weight_qdata": "torchao",
    "_weight_qdata": "torchao",
}  # fmt: skip
_TITLES = {
    "awq": "AWQ", "aqlm": "AQLM", "bitnet": "BitNet", "bitsandbytes": "bitsandbytes", "exl2": "EXL2",
    "exl3": "EXL3", "fp8": "FP8", "gptq": "GPTQ", "hqq": "HQQ", "int8": "INT8", "marlin": "Marlin",
    "mlx": "MLX", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "quip": "QuIP",
}  # fmt: skip
_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_GPTQ_FORMATS = ("gptq", "gptq_v2")
# Whole numbers that are no weights: positions, masks, counters, tables of token ids.
_BUFFER = re.compile(
    r"position_ids|(^|\.)(masked_)?bias$|mask|num_batches|_idx$|(^|\.)(inv_freq|d2t|t2d|tid2eid)$"
)
_SCALES = ("weight_scale", "weight_scale_inv", "qscale_weight", "scale")
_MLX_BITS, _MLX_GROUPS = (2, 3, 4, 5, 6, 8), (64, 32, 128, 16)


class Tensor(Protocol):
    """A tensor as a header announces it."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Storage:
    """How weights are stored. ``method``: ``gptq``, or None for plain floats; ``description``: in words, with
    the bits. ``elements``: parameters of each tensor, under the name that it has unpacked (None: the layout
    does not tell how many). ``ignored``: the method that the config names although the weights are plain.
    ``refusal``: why the weights cannot be converted, or an empty text."""

    method: str | None = None
    description: str = ""
    elements: Mapping[str, int] | None = field(default_factory=dict)
    ignored: str = ""
    refusal: str = ""

    @property
    def remark(self) -> str:
        """What a person should know although the weights can be converted."""
        if not self.ignored:
            return ""
        return (
            f"config.json says that the weights are quantized with {self.ignored[:40]}, but they are plain; "
            "that setting is ignored."
        )


def settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config's own words on its quantization, or its text model's; empty without any."""
    part = config.get("text_config")
    for place in (config, part if isinstance(part, Mapping) else {}):
        for key in QUANTIZATION_KEYS:
            found = place.get(key)
            if isinstance(found, Mapping) and found:
                return found
    return {}


def named(config: Mapping[str, Any]) -> str | None:
    """The method that a config names."""
    method = settings(config).get("quant_method")
    return method if isinstance(method, str) and method else None


def said_bits(config: Mapping[str, Any]) -> int:
    """Bits of a parameter by the config alone: those of its quantization, or 16."""
    own = settings(config)
    bits = own.get("bits", 4 if own.get("load_in_4bit") else 8 if own.get("load_in_8bit") else 16)
    return bits if type(bits) is int and 1 <= bits <= 16 else 16


def read(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Storage:
    """What the tensors show, compared with the config."""
    found = _Unpacking(tensors, settings(config))
    for tensor in tensors:
        found.see(tensor)
    said = named(config)
    elements = found.elements()
    if not found.methods:
        if said is None:
            return Storage(elements=elements)
        if said in _KNOWN:
            return Storage(elements=elements, ignored=said)
        return Storage(
            said, f"{said[:40]!r}, by its config alone", elements,
            refusal="It is none of the methods that ggq knows by their tensors.",
        )  # fmt: skip
    method, _ = found.methods.most_common(1)[0]
    if said is not None and (method == said or said in _WRITERS.get(method, ())):
        method = said
    return Storage(method, found.described(), elements, refusal=_refusal(found, said, settings(config)))


def _refusal(found: _Unpacking, said: str | None, config: Mapping[str, Any]) -> str:
    """Why packed weights cannot be converted; empty when the converter reads them as they are."""
    shown = set(found.methods)
    if "unknown" in shown:
        return (
            f"{found.example('unknown')[:80]!r} holds whole numbers, packed in a way that ggq does not know."
        )
    alien = sorted(shown - {"bitnet", "fp8", "gptq", "int8", "mxfp4", "nvfp4", "compressed-tensors"})
    if alien:
        title = _TITLES.get(alien[0], alien[0])
        return f"The converter does not unpack {title} ({found.example(alien[0])[:80]})."
    if said is None:
        return (
            "config.json has no quantization_config, so the converter would take "
            f"{found.example()[:80]!r} for something else."
        )
    strange = sorted(method for method in shown if method != said and said not in _WRITERS.get(method, ()))
    if strange:
        return (
            f"config.json names {said[:40]!r}, and {found.example(strange[0])[:80]!r} is of another method."
        )
    if said not in READABLE_QUANTIZATIONS:
        return f"The converter reads plain floats and {', '.join(READABLE_QUANTIZATIONS)}, not {said[:40]!r}."
    return _gptq_refusal(found, config) if "gptq" in shown else ""


def _gptq_refusal(found: _Unpacking, config: Mapping[str, Any]) -> str:
    bits = config.get("bits")
    if found.bits["gptq"] != {bits}:
        shown = " and ".join(map(str, sorted(found.bits["gptq"])))
        return f"config.json says {str(bits)[:20]} bits, and its tensors are of {shown}."
    if bits not in (2, 4, 8):
        return f"The converter does not unpack GPTQ of {bits} bits."
    if config.get("checkpoint_format", "gptq") not in _GPTQ_FORMATS:
        return f"Its checkpoint_format is {str(config.get('checkpoint_format'))[:40]!r}."
    if found.lacking:
        return f"It lacks {found.lacking[0][:120]}, without which the converter does not unpack it."
    return ""


class _Unpacking:
    """Goes through tensors and finds what belongs together."""

    def __init__(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> None:
        self._all = {tensor.name: tensor for tensor in tensors}
        self._config = config
        self._unpacked: dict[str, int] = {}
        self._sidecars: set[str] = set()
        self._examples: dict[str, str] = {}
        self._uncounted = False
        self.methods = Counter[str]()
        self.bits: dict[str, set[int]] = {}
        self.lacking: list[str] = []

    def elements(self) -> Mapping[str, int] | None:
        """Parameters of each tensor by its unpacked name, or None."""
        if self._uncounted:
            return None
        plain = {
            name: math.prod(tensor.shape)
            for name, tensor in self._all.items()
            if name not in self._sidecars and name not in self._unpacked
        }
        return plain | self._unpacked

    def described(self) -> str:
        parts = []
        for method in sorted(self.methods):
            bits = sorted(self.bits.get(method, ()))
            title = _TITLES.get(method, method)
            if method == "unknown":
                title = "packed in an unknown way"
            if method == "bitsandbytes" and bits == [8]:
                title = "bitsandbytes (LLM.int8)"
            parts.append(f"{'- and '.join(map(str, bits))}-bit {title}" if bits else title)
        return ", ".join(parts)

    def example(self, method: str = "") -> str:
        """The name of a tensor by which a method is known."""
        return self._examples.get(method) or next(iter(self._examples.values()), "")

    def see(self, tensor: Tensor) -> None:
        """Note a tensor that is packed."""
        name = tensor.name
        stem, _, last = name.rpartition(".")
        if last == "qweight":
            self._qweight(tensor, stem)
        elif last == "SCB":
            self._note("bitsandbytes", name, bits=8, sidecars=(name, f"{stem}.weight_format"))
        elif ".weight.quant_state.bitsandbytes__" in name or (last == "absmax" and stem.endswith(".weight")):
            self._bitsandbytes(name)
        elif last == "weight_packed":
            self._compressed(tensor, stem)
        elif name.endswith("_blocks") and tensor.dtype == "U8" and f"{name[:-7]}_scales" in self._all:
            base = name.removesuffix("_blocks")
            self._note("mxfp4", name, base, 2 * math.prod(tensor.shape), 4, (name, f"{base}_scales"))
        elif last in _OTHERS and tensor.dtype in _INTEGERS and len(tensor.shape) > 1:
            self._uncounted = True
            self._note(_OTHERS[last], name)
        elif tensor.dtype.startswith(("F8", "F4", "F6")):
            self._narrow_floats(tensor, stem)
        elif tensor.dtype in _INTEGERS and name not in self._unpacked and not _BUFFER.search(name):
            self._integers(tensor, stem)

    def _note(
        self,
        method: str,
        example: str,
        unpacked: str = "",
        elements: int = 0,
        bits: int = 0,
        sidecars: Sequence[str] = (),
    ) -> None:
        self.methods[method] += 1
        self._examples.setdefault(method, example)
        self._sidecars.update(sidecars)
        if unpacked:
            self._sidecars.discard(unpacked)
            self._unpacked[unpacked] = elements
        if bits:
            self.bits.setdefault(method, set()).add(bits)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._all[name].shape if name in self._all else ()

    def _qweight(self, tensor: Tensor, stem: str) -> None:
        """GPTQ: qweight (in·bits/32, out), qzeros (groups, out·bits/32), scales (groups, out), g_idx (in).
        AWQ: qweight (in, out·bits/32), the others as there."""
        zeros, scales, index = (self._shape(f"{stem}.{word}") for word in ("qzeros", "scales", "g_idx"))
        sidecars = [f"{stem}.{word}" for word in ("qweight", "qzeros", "scales", "g_idx", "perm")]
        packed = tensor.shape
        if len(packed) != 2 or len(scales) != 2 or tensor.dtype not in ("I32", "U32"):
            self._uncounted = True
            self._note("unknown", tensor.name)
            return
        bits = self._config.get("bits") if type(self._config.get("bits")) is int else 4
        if len(zeros) == 2 and scales[1]:
            bits = 32 * zeros[1] // scales[1]
        elif len(index) == 1 and index[0]:
            bits = 32 * packed[0] // index[0]
        bits = bits or 4
        if packed[1] == scales[1]:
            self._note(
                "gptq", tensor.name, f"{stem}.weight", packed[0] * 32 // bits * packed[1], bits, sidecars
            )
            self.lacking += [
                f"{stem}.{word}" for word in ("g_idx", "qzeros") if f"{stem}.{word}" not in self._all
            ]
        else:
            self._note("awq", tensor.name, f"{stem}.weight", math.prod(packed) * 32 // bits, bits, sidecars)

    def _bitsandbytes(self, name: str) -> None:
        """4 bits: weight (n/2, 1) of bytes, and the tables below its name."""
        weight = name[: name.rindex(".weight.") + len(".weight")]
        if weight in self._unpacked:
            return
        words = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"]
        words += ["quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"]
        sidecars = [f"{weight}.{word}" for word in words]
        self._note("bitsandbytes", name, weight, 2 * math.prod(self._shape(weight)), 4, sidecars)

    def _compressed(self, tensor: Tensor, stem: str) -> None:
        """compressed-tensors: I32 holds 32/bits numbers along the last dimension, U8 two of NVFP4."""
        words = ("packed", "scale", "shape", "zero_point", "g_idx", "global_scale")
        sidecars = [f"{stem}.weight_{word}" for word in words]
        sidecars += [f"{stem}.{word}" for word in ("input_scale", "input_global_scale", "input_zero_point")]
        count = math.prod(tensor.shape)
        if tensor.dtype == "U8":
            self._note("nvfp4", tensor.name, f"{stem}.weight", 2 * count, 4, sidecars)
            return
        groups = self._config.get("config_groups")
        bits = {
            group["weights"].get("num_bits")
            for group in (groups.values() if isinstance(groups, Mapping) else ())
            if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
        }
        if len(bits) != 1 or not bits <= {2, 3, 4, 8}:
            self._uncounted = True
            self._note("compressed-tensors", tensor.name, sidecars=sidecars)
            return
        (width,) = bits
        elements = count * (32 // width)
        self._note("compressed-tensors", tensor.name, f"{stem}.weight", elements, width, sidecars)

    def _narrow_floats(self, tensor: Tensor, stem: str) -> None:
        """FP8 with a scale; without one they are floats like others. A scale may be an F8 itself."""
        base = tensor.name.removesuffix("weight")
        scales = [f"{base}{word}" for word in _SCALES] + [f"{tensor.name}_scale", f"{tensor.name}_scale_inv"]
        if tensor.name in self._sidecars or tensor.name.endswith(tuple(f".{word}" for word in _SCALES)):
            return
        if any(scale in self._all for scale in scales):
            inputs = ("input_scale", "activation_scale", "qscale_act", "k_scale", "v_scale")
            sidecars = scales + [f"{stem}.{word}" for word in inputs]
            bits = 4 if tensor.dtype.startswith("F4") else 8
            self._note(
                "fp8" if bits == 8 else "mxfp4",
                tensor.name,
                tensor.name,
                math.prod(tensor.shape),
                bits,
                sidecars,
            )

    def _integers(self, tensor: Tensor, stem: str) -> None:
        name, shape = tensor.name, tensor.shape
        if len(shape) < 2 or name in self._sidecars:
            return
        count = math.prod(shape)
        own = name.endswith("weight")
        if tensor.dtype == "U32" and own and f"{stem}.scales" in self._all:
            bits, elements = self._mlx(stem, shape, self._shape(f"{stem}.scales"))
            self._note("mlx", name, name, elements, bits, (f"{stem}.scales", f"{stem}.biases"))
        elif own and f"{stem}.SCB" in self._all:
            return  # counted at its SCB; a weight of 8 bits has its own shape
        elif own and any(f"{name}.{word}" in self._all for word in ("absmax", "quant_map")):
            return  # seen at its tables
        elif tensor.dtype == "U8" and f"{stem}.weight_scale_2" in self._all:
            words = ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")
            self._note("nvfp4", name, name, 2 * count, 4, [f"{stem}.{word}" for word in words])
        elif tensor.dtype == "U8" and own and math.prod(self._shape(f"{stem}.weight_scale") or (0,)) == 1:
            self._note("bitnet", name, name, 4 * count, 2, (f"{stem}.weight_scale",))
        elif (
            tensor.dtype == "I8"
            and own
            and {f"{stem}.weight_scale", f"{stem}.weight_scales"} & set(self._all)
        ):
            words = ("weight_scale", "weight_scales", "weight_zero_point", "input_scale", "input_zero_point")
            self._note("int8", name, name, count, 8, [f"{stem}.{word}" for word in words])
        elif own or count > 1 << 16:
            self._uncounted = True
            self._note("unknown", name)

    def _mlx(self, stem: str, packed: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
        """Bits and elements of a weight (…, in·bits/32) with scales (…, in/group). The product of bits and
        group follows from the shapes; the config says which is which, or MLX's usual group does."""
        product = 32 * packed[-1] // max(1, scales[-1] if scales else 1)
        own = self._config.get(stem)
        said = own if isinstance(own, Mapping) else self._config
        pairs = [(said.get("bits"), said.get("group_size"))]
        pairs += [(product // group, group) for group in _MLX_GROUPS if product % group == 0]
        for bits, group in pairs:
            if bits in _MLX_BITS and type(group) is int and bits * group == product:
                return bits, math.prod(packed) * 32 // bits
        self._uncounted = True
        return 0, 0
