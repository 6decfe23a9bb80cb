"""How to run a model as it was planned: llama-server's command line, keyword arguments of ``Llama``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.errors import ToolchainProblem
from ggq.gguf import tensor_types
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.binding_bench import default_options, impossible
from ggq.llamacpp.fit_params import SERVER
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain


@dataclass(frozen=True)
class Companions:
    """Files that are loaded beside a model: a draft model, placed by ``draft_offload``, and a projector
    (``projector_on_cpu``: the devices have no room for it)."""

    draft: Path | None = None
    draft_offload: Offload = field(default_factory=Offload)
    projector: Path | None = None
    projector_on_cpu: bool = False

    @property
    def are_there(self) -> bool:
        return self.draft is not None or self.projector is not None

    def arguments(self) -> list[str]:
        """Those of llama-server."""
        beside = self.draft_offload
        # Where nothing is said the draft goes where the model goes.
        devices = beside.devices if beside.n_gpu_layers else ("none",)
        return [
            *(["--spec-type", "draft-simple", "-md", str(self.draft)] if self.draft else []),
            *(["-ngld", str(beside.n_gpu_layers)] if self.draft else []),
            *(["-devd", ",".join(devices)] if self.draft and devices else []),
            *(["-ncmoed", str(beside.n_cpu_moe)] if self.draft and beside.n_cpu_moe else []),
            *(["-mm", str(self.projector)] if self.projector else []),
            *(["--no-mmproj-offload"] if self.projector_on_cpu else []),
        ]  # fmt: skip


@dataclass(frozen=True)
class Serving:
    """``load``: context, cache and placement; ``load_mode``: a word of bench.LOAD_MODES; ``threads`` of
    generation, ``prompt_threads`` of prompts (None: llama.cpp chooses them). ``companions``: what is
    loaded beside the model; ``rpc``: servers that have devices for it;
    ``embeddings``: of an encoder, which answers with vectors; ``pooling``: how these are made of a model that
    does not say it; ``reranking``: it answers with scores. ``parallel``: clients at once, who share the
    context evenly."""

    load: Load
    load_mode: str
    threads: int | None
    prompt_threads: int | None
    companions: Companions = field(default_factory=Companions)
    rpc: tuple[str, ...] = ()
    embeddings: bool = False
    pooling: str | None = None
    reranking: bool = False
    parallel: int = 1

    def server_command(self, model: Path, toolchain: Toolchain | None = None) -> list[str]:
        """A command line for a shell, with the server of ``toolchain`` (None, or it has none: one on PATH),
        which listens on 127.0.0.1, its own default."""
        server = SERVER
        if toolchain is not None:
            with contextlib.suppress(ToolchainProblem):
                server = str(toolchain.tool(SERVER))
        return [server, "-m", str(model), *self.server_arguments()]

    def server_arguments(self) -> list[str]:
        """The command line, but for the server and the model."""
        load = self.load
        placement = load.offload.arguments()
        # A vector or a score comes of one batch that holds the whole text.
        whole = self.embeddings or self.reranking
        return [
            "-c", str(load.context_tokens), *placement,
            *(["--rpc", ",".join(self.rpc)] if self.rpc and "--rpc" not in placement else []),
            *(["-t", str(self.threads)] if self.threads else []),
            *(["-tb", str(self.prompt_threads)] if self.prompt_threads else []),
            "-fa", load.flash_attention, "-ctk", load.type_k, "-ctv", load.type_v, "-lm", self.load_mode,
            *(["-b", str(load.n_batch), "-ub", str(load.n_ubatch)] if whole else []),
            "-fit", "off", "-np", str(self.parallel),
            # By default it keeps 8 GiB of former prompts, and copies of the cache: no plan knows of these.
            "-cram", "0", "-ctxcp", "0",
            *self.companions.arguments(),
            *(["--embeddings"] if self.embeddings else []),
            *(["--pooling", self.pooling] if self.pooling else []),
            *(["--reranking"] if self.reranking else []),
        ]  # fmt: skip

    def binding_options(self) -> Mapping[str, Any] | None:
        """Keyword arguments of ``llama_cpp.Llama`` but for the path; None: it has none for this."""
        load = self.load
        if self.companions.are_there:
            return None
        options = BenchOptions(
            offload=load.offload,
            type_k=load.type_k,
            type_v=load.type_v,
            flash_attention=load.flash_attention,
            load_mode=self.load_mode,
        )
        if impossible(options):
            return None
        known = tensor_types.by_name()
        return {
            "n_ctx": load.context_tokens,
            **default_options(options, self.threads, self.prompt_threads),
            # The binding's own defaults would take more than llama.cpp's tools, and than was predicted.
            "flash_attn": load.flash_attention != "off",
            "swa_full": False,
            **({"embedding": True} if self.embeddings else {}),
            "type_k": known[load.type_k.upper()].number,
            "type_v": known[load.type_v.upper()].number,
        }
