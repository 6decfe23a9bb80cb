"""The speeds of a plan: what was measured of hollow models within a budget, for each load."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel
from ggq.estimation.speed import Costs, Kind, blocks, estimate
from ggq.estimation.speed_meter import SpeedMeter
from ggq.estimation.timings import Calibration
from ggq.llamacpp.memory import Load
from ggq.llamacpp.threads import ThreadChoice
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_types import PresetPlan
from ggq.presets.catalogue import Preset
from ggq.progress import Listener


class PlanSpeeds:
    """The speeds of a plan's loads: a meter for each type of cache, within one budget."""

    def __init__(
        self,
        hollow: HollowModel,
        account: Account,
        chosen: Sequence[Preset],
        planned: Sequence[PresetPlan],
        settings: PlanSettings,
    ) -> None:
        self._hollow = hollow
        self._facts = account.facts()
        self._chosen = chosen
        self._planned = planned
        self._settings = settings

    def predicted(
        self, loads: Sequence[Load], devices: Sequence[str], vram_bytes: int, listener: Listener
    ) -> tuple[list[PresetPlan], ThreadChoice]:
        """The presets with the speed of each load, where what that needs was measured; and the threads."""
        started = time.monotonic()
        sizes = {it.preset: it.size.file_bytes for it in self._planned}
        calibration = Calibration(self._hollow.folder / "speed.json", self._hollow.toolchain)
        placements = {cell.offload for it in self._planned for cell in it.loads}
        kinds = sorted({kind for it in placements for kind in blocks(it, self._facts.block_count)})
        threads: ThreadChoice | None = None
        if self._settings.threads:
            threads = ThreadChoice(self._settings.threads, self._settings.threads)
        found: dict[tuple[str, str], dict[str, dict[Kind, Costs]]] = {}
        for load in loads:
            cache = (load.type_k, load.type_v)
            if cache in found:
                continue
            meter = SpeedMeter(
                self._hollow,
                self._facts,
                sizes,
                load,
                calibration,
                devices=devices,
                vram_bytes=vram_bytes,
                listener=listener,
            )
            if threads is None:
                meter.choose_threads(self._chosen)
                threads = meter.threads
            meter.threads = threads
            left_s = self._settings.budget_s - (time.monotonic() - started)
            found[cache] = meter.measure(self._chosen, kinds, left_s)
        assert threads is not None, "there is a load"
        return [self._timed(it, found, threads) for it in self._planned], threads

    def _timed(
        self,
        planned: PresetPlan,
        costs: Mapping[tuple[str, str], Mapping[str, Mapping[Kind, Costs]]],
        threads: ThreadChoice,
    ) -> PresetPlan:
        loads = []
        for cell in planned.loads:
            memory = cell.memory
            of_preset = costs[memory.type_k, memory.type_v][planned.preset]
            speed = estimate(of_preset, cell.offload, self._facts.block_count, memory.context_tokens, threads)
            loads.append(replace(cell, speed=speed))
        return replace(planned, loads=tuple(loads))
