"""What all work of one call shares: llama.cpp, the presets, whether the network may be used, who listens."""

from __future__ import annotations

from functools import cached_property

from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets import catalogue as presets
from ggq.presets.catalogue import Catalogue
from ggq.progress import Listener, silent


class Session:
    """Made once and passed on; nothing in it changes. What is not given is found when it is first needed.

    ``offline``: only what the Hub cache has; ``listener``: hears of progress and remarks.
    """

    def __init__(
        self,
        toolchain: Toolchain | None = None,
        catalogue: Catalogue | None = None,
        *,
        offline: bool = False,
        listener: Listener = silent,
    ) -> None:
        self._toolchain = toolchain
        self._catalogue = catalogue
        self.offline = offline
        self.listener = listener

    @cached_property
    def toolchain(self) -> Toolchain:
        """Raises ToolchainProblem when there is none."""
        return self._toolchain or toolchains.find()

    @cached_property
    def catalogue(self) -> Catalogue:
        """Raises UsageProblem for a presets file that is wrong."""
        return self._catalogue or presets.load()
