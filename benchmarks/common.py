"""What every benchmark shares: bars with limits, a JSON result, generated checkpoints, watched commands."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggq.llamacpp import toolchain
from ggq.llamacpp.toolchain import Toolchain
from ggq.records.environment import environment
from ggq.system import process

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench-results"
EXAMPLE = ROOT / "examples" / "tiny-llama"


@dataclass(frozen=True)
class Bar:
    """A figure that must not exceed its limit."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"bar {self.name}: {self.value:.3f} (limit {self.limit:.2f}) {'ok' if self.ok else 'missed'}"


@dataclass(frozen=True)
class Watched:
    """A command that was run, without the folders of its paths: wall seconds, and two peaks of its process
    tree, sampled ten times a second.

    ``peak_anonymous_bytes``: memory of its own, which the system cannot take back. ``peak_pss_bytes``: that
    and its share of mapped file pages (PSS, in /proc/PID/smaps_rollup, counts a page of n processes as 1/n),
    which are the system's file cache and can be taken back at any moment.
    """

    command: str
    seconds: float
    peak_anonymous_bytes: int
    peak_pss_bytes: int


def convert_by_hand(
    tools: Toolchain, checkpoint: Path, output: Path, outtype: str, *arguments: str | Path
) -> process.Completed:
    """Run llama.cpp's converter as a person does, without ggq's view: on trusted checkpoints."""
    command = [
        sys.executable,
        tools.converter,
        checkpoint,
        "--outfile",
        output,
        "--outtype",
        outtype,
        *arguments,
    ]
    return process.run(command, env={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}, check=False)


def watch(command: Sequence[str | Path], cwd: Path | None = None) -> Watched:
    """Run a command to its end. Raises CalledProcessError with its output when it fails."""
    import psutil

    argv = [str(part) for part in command]
    peaks = {"Pss_Anon": 0, "Pss": 0}
    started = time.monotonic()
    with subprocess.Popen(
        argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        root = psutil.Process(child.pid)
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.1):
                for name, value in _tree_memory(root).items():
                    peaks[name] = max(peaks[name], value)

        sampler = threading.Thread(target=sample)
        sampler.start()
        output, _ = child.communicate()
        seconds = time.monotonic() - started
        over.set()
        sampler.join()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, argv, output)
    return Watched(" ".join(Path(part).name for part in argv), seconds, peaks["Pss_Anon"], peaks["Pss"])


def ends_within(command: Sequence[str | Path], limit_bytes: int) -> bool | None:
    """Whether a command comes to its end in a control group of so much memory, in which everything counts:
    its own memory and the file pages that it touches, mapped or not. None where no such group can be made.
    """
    for controllers, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / controllers / "ggq-benchmark"
        try:
            group.mkdir()
            (group / limit).write_text(str(limit_bytes), encoding="ascii")
            break
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
    else:
        return None
    try:
        # The shell moves itself into the group and becomes the command.
        join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        argv = ["sh", "-c", join, "sh", *map(str, command)]
        return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    finally:
        group.rmdir()


def _tree_memory(root: Any) -> dict[str, int]:
    import psutil

    totals = {"Pss_Anon": 0, "Pss": 0}
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return totals
    for each in processes:
        try:
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            name, value = line.split()[:2]
            if name.rstrip(":") in totals:
                totals[name.rstrip(":")] += int(value) << 10
    return totals


def random_llama(
    folder: Path,
    *,
    width: int,
    ffn: int,
    layers: int,
    heads: int,
    head_dim: int | None = None,
    dtype: str = "bfloat16",
    context: int = 4096,
) -> int:
    """A Llama checkpoint with random weights and the example's tokenizer; returns its parameter count."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, folder / name)
    config = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))
    vocabulary = config["vocab_size"]
    config |= {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim or width // heads,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "max_position_embeddings": context,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    attention = heads * (head_dim or width // heads)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (attention, width) for name in "qkv"}
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (width, attention)
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (ffn, width) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, ffn)
        shapes |= {f"{prefix}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(1)
    kind = getattr(torch, dtype)
    tensors = {
        name: torch.ones(shape, dtype=kind)
        if len(shape) == 1
        else torch.empty(shape, dtype=kind).normal_(0, 0.02, generator=generator)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def finish(name: str, results: Mapping[str, Any], bars: Sequence[Bar]) -> None:
    """Print the bars, leave the JSON under bench-results/, exit 1 when one is missed."""
    for bar in bars:
        print(bar)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "schema_version": 1,
        "benchmark": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": asdict(environment(toolchain.find())),
        **results,
        "bars": [asdict(bar) | {"ok": bar.ok} for bar in bars],
    }
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    print(f"written: {file.relative_to(ROOT)}")
    if not all(bar.ok for bar in bars):
        sys.exit(1)
