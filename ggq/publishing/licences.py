"""What a licence says of giving quantized files of a model to others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# The Hub's identifiers (docs/hub/repositories-licenses) of licences that allow it, to whoever keeps the text
# and the names of the authors with it.
_FREE = frozenset((
    "afl-3.0", "apache-2.0", "artistic-2.0", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "bigcode-openrail-m", "c-uda", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0",
    "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "mulanpsl-2.0", "ncsa", "odbl",
    "odc-by", "ofl-1.1", "openmdw-1.0", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql",
    "unlicense", "wtfpl", "zlib",
))  # fmt: skip
# Their publishers allow it under conditions, which the card names.
_CONDITIONS = {
    "llama2": "Llama 2's: a copy of it and its notice go along.",
    "llama3": "Llama 3's: a copy of it, its notice, and “Built with Meta Llama 3” go along.",
    "llama3.1": "Llama 3.1's: a copy of it and “Built with Llama” go along.",
    "llama3.2": "Llama 3.2's: a copy of it and “Built with Llama” go along.",
    "llama3.3": "Llama 3.3's: a copy of it and “Built with Llama” go along.",
    "llama4": "Llama 4's: a copy of it and “Built with Llama” go along.",
    "gemma": "Gemma's: its terms and restrictions of use go along.",
    "deepfloyd-if-license": "DeepFloyd's: research only.",
    "fair-noncommercial-research-license": "for research that is not commercial.",
    "intel-research": "for research.",
    "apple-amlr": "Apple's: for research.",
    "apple-ascl": "Apple's sample code licence.",
    "h-research": "for research that is not commercial.",
    "etalab-2.0": "its source is to be named.",
}


class Standing(StrEnum):
    """Whether quantized files may be published."""

    FREE = "free"
    CONDITIONS = "conditions"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """``question``: what the publisher must answer for himself (empty: nothing); ``remark``: what he should
    know (empty: nothing)."""

    standing: Standing
    question: str = ""
    remark: str = ""


def judge(license: str | None, name: str | None = None) -> Verdict:
    """By the Hub's identifier; ``name``: what a card calls a licence that has none (``license: other``)."""
    word = (license or "").strip().lower()
    shown = name or license or ""
    parts = f"{word} {name or ''}".lower().replace("_", "-").split("-")
    if "nd" in parts:
        return Verdict(
            Standing.FORBIDDEN,
            f"The licence {shown} allows no derivatives, and a quantized file may be one."
            " Publish all the same?",
        )
    if word in _FREE:
        return Verdict(Standing.FREE)
    if word in _CONDITIONS:
        return Verdict(Standing.CONDITIONS, remark=f"The licence is {_CONDITIONS[word]}")
    if "nc" in parts and word.startswith("cc-"):
        return Verdict(Standing.CONDITIONS, remark=f"The licence {shown} allows no commercial use.")
    if word in ("", "unknown"):
        return Verdict(
            Standing.UNKNOWN,
            "Nothing says under which licence this model is: without one it may not be given to others."
            " Publish all the same?",
        )
    return Verdict(
        Standing.UNKNOWN,
        f"ggq does not know the licence {shown!r}. Does it allow quantized files to be published?",
    )
