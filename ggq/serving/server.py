"""llama-server, from its start to its end: ready, watched, explained when it fails, never left behind."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from ggq.errors import DoesNotFit, GgqError, GgufProblem, UsageProblem
from ggq.llamacpp import endings
from ggq.llamacpp.server_endpoint import router_arguments, router_environment, router_ini
from ggq.progress import Listener, Step
from ggq.serving import parameters
from ggq.serving.parameters import Parameters
from ggq.serving.server_plan import ServerPlan
from ggq.serving.settings import Fit
from ggq.session import Session
from ggq.system import files, process, scratch
from ggq.system.process import Completed

# An answer in flight is cut off after that: whoever ends a server does not want to wait for it.
GRACE_S = 3.0
_POLL_S = 0.1
_STEP = "loading"
_PREFIX = re.compile(r"^[\d.]+ [A-Z] +")
_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|allocation failed|failed to fit params|bad_alloc",
    re.I,
)
_BIND = re.compile(r"couldn't bind|bind.*(?:failed|in use)", re.I)
_REASON = re.compile(r"error loading model|failed to load|invalid|unknown model|not supported|error:", re.I)


@dataclass(frozen=True)
class Ready:
    """A server that answers. ``seconds``: since its start."""

    url: str
    process_id: int
    seconds: float


def execute(plan: ServerPlan, session: Session, on_ready: Callable[[Ready], None]) -> None:
    """Run the server until it ends; ``on_ready`` is called, in another thread, when its model is loaded.

    KeyboardInterrupt ends it, within some three seconds. On Linux it also ends when this process is killed:
    so this must run in a thread that lives as long as the process.

    Raises DoesNotFit, GgufProblem, UsageProblem or ToolFailed when it ends by itself, with its reason.
    """
    with ExitStack() as stack:
        command, environment = plan.command(), plan.endpoint.environment()
        if plan.is_router:
            work = stack.enter_context(scratch.folder("serve"))
            more, own = _router(plan, work)
            command, environment = [*command, *more], {**environment, **own}
        log = stack.enter_context(_log(plan.log_file))
        log.write(f"$ {' '.join(command)}\n")
        watcher = _Watcher(plan, on_ready, session.listener)
        stack.callback(watcher.stop)

        def heard(line: str) -> None:
            log.write(f"{line}\n")
            log.flush()

        done = process.run(
            command,
            env=environment,
            watch=process.Watch(heard, heard, watcher.start),
            check=False,
            grace_s=GRACE_S,
        )
    if done.returncode:
        raise explained(done, plan, session)


class _Watcher:
    """Asks a starting server whether it is ready, and tells how much of the model is in memory."""

    def __init__(self, plan: ServerPlan, on_ready: Callable[[Ready], None], listener: Listener) -> None:
        self._plan = plan
        self._on_ready = on_ready
        self._listener = listener
        self._over = threading.Event()

    def start(self, process_id: int) -> None:
        threading.Thread(target=self._watch, args=(process_id,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self, process_id: int) -> None:
        started = time.monotonic()
        endpoint = self._plan.endpoint
        total = 0 if self._plan.is_router else sum(it.file.file_bytes for it in self._plan.models.values())
        while not endpoint.is_ready():
            if total:
                self._listener(Step(_STEP, min(_resident_bytes(process_id), total - 1), total))
            if self._over.wait(_POLL_S):
                return
        if total:
            self._listener(Step(_STEP, total, total))
        if not self._over.is_set():
            self._on_ready(Ready(endpoint.url, process_id, time.monotonic() - started))


def _resident_bytes(process_id: int) -> int:
    """What a process has in memory: of a model that is being loaded, mostly its weights."""
    import psutil

    try:
        return int(psutil.Process(process_id).memory_info().rss)
    except psutil.Error:
        return 0


def _router(plan: ServerPlan, work: Path) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment for several models; their INI file and an empty cache lie in ``work``."""
    ini, empty = work / "models.ini", work / "cache"
    empty.mkdir()
    ini.write_text(ini_text(plan), encoding="utf-8")
    return router_arguments(ini, plan.most_models), router_environment(empty)


def ini_text(plan: ServerPlan) -> str:
    """How each of several models is run, as llama-server's router reads it."""
    return router_ini(
        {name: (it.file.path, it.serving.server_arguments()) for name, it in plan.models.items()}
    )


def _log(file: Path) -> TextIO:
    """A new log that only this user reads. Raises OutputProblem."""
    files.make_folder(file.parent, "choose another file with --log-file")
    with files.explain_os_error(file, "choose another file with --log-file"):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return os.fdopen(handle, "w", encoding="utf-8", errors="replace")


# --- why it ended -----------------------------------------------------------------------------------------


def explained(done: Completed, plan: ServerPlan, session: Session) -> GgqError:
    """The error of a server that ended by itself."""
    lines = [_PREFIX.sub("", line) for line in (*done.stdout, *done.stderr)]
    model = next(iter(plan.models.values()))
    name = model.file.path.name if not plan.is_router else "one of the models"
    if done.out_of_memory or any(map(_MEMORY.search, lines)):
        by_kernel = " The kernel ended it." if done.out_of_memory else ""
        needs = files.human_bytes(model.memory.ram_bytes)
        return DoesNotFit(
            f"llama-server ran out of memory with {name}.",
            f"By llama.cpp's account it needs {needs} of RAM.{by_kernel}",
            would_fit(model, plan, session),
        )
    if any(map(_BIND.search, lines)):
        return UsageProblem(
            f"Port {plan.endpoint.port} of {plan.endpoint.host} is taken.",
            "",
            "Leave --port out, or give another one.",
        )
    if done.returncode < 0:
        return endings.failed(done)
    reasons = [line for line in lines if _REASON.search(line)]
    if reasons:
        return GgufProblem(
            f"llama-server does not serve {name}.", reasons[0][:300], f"The whole log: {plan.log_file}"
        )
    return done.failed(f"The whole log: {plan.log_file}")


def would_fit(model: Parameters, plan: ServerPlan, session: Session) -> str:
    """What of this model fits the memory that is free now, as advice."""
    tried = model.context_tokens
    load = replace(plan.settings.load, context_tokens=None, type_k=None, type_v=None, fit=Fit.ON)
    try:
        smaller = parameters.choose(
            session.toolchain,
            model.file.path,
            load,
            parallel=1,
            use=model.use,
            projector=model.serving.companions.projector,
        )
    except GgqError:
        return (
            "Not even its shortest context fits now. Take a smaller file: `ggq plan` shows what each needs."
        )
    kind = smaller.serving.load.type_k
    alone = " for one client" if plan.settings.parallel > 1 else ""
    if smaller.context_tokens < tried or alone:
        return f"This would fit now{alone}: -c {smaller.context_tokens} -ctk {kind} -ctv {kind}"
    return f"Try -c {max(512, tried // 2)}, a smaller file, or close other programs."
