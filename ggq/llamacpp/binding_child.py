"""The child process that times llama-cpp-python: a job (JSON) on stdin, an event (JSON) a line on stdout.

It runs what a Python user runs, ``Llama.eval`` and ``Llama.generate``, greedily. A stopwatch around their
calls of ``llama_decode`` and of the sampler costs a microsecond a token.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ggq.gguf import tensor_types
from ggq.llamacpp import binding
from ggq.llamacpp.binding_bench import Job, Task, Timing
from ggq.llamacpp.toolchain import Toolchain


class Stopwatch:
    """Nanoseconds spent inside a function."""

    def __init__(self) -> None:
        self.ns = 0

    def around(self, function: Callable[..., Any], after: Callable[[], None] | None = None) -> Any:
        """``function`` under the watch; ``after`` counts as part of it."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return function(*arguments, **named)
            finally:
                if after is not None:
                    after()
                self.ns += time.perf_counter_ns() - started

        return timed


class Subject:
    """A model, loaded as a Python user loads it."""

    def __init__(self, job: Job) -> None:
        toolchain = Toolchain("named", Path(job.lib_dir), Path(job.lib_dir), None, None)
        lib = binding.load(toolchain)
        self.llama = lib.Llama(
            model_path=job.model,
            n_ctx=max(task.tokens + task.depth_tokens for task in job.tasks) + 1,
            type_k=tensor_types.by_name()[job.type_k.upper()].number,
            type_v=tensor_types.by_name()[job.type_v.upper()].number,
            no_perf=True,
            verbose=False,
            **job.options,
        )
        self.decoding, self.sampling = Stopwatch(), Stopwatch()
        context = self.llama._ctx
        # A GPU works on after llama_decode has returned; the sampler would wait for it.
        context.decode = self.decoding.around(context.decode, lambda: lib.llama_synchronize(context.ctx))
        self.llama.sample = self.sampling.around(self.llama.sample)

    def run(self, task: Task) -> Timing:
        """One repetition."""
        vocabulary = self.llama.n_vocab()
        is_prompt = task.test == "prompt"
        # Generation begins with what the context's last token says.
        before = task.depth_tokens if is_prompt else max(task.depth_tokens - 1, 0)
        given = task.tokens if is_prompt else 1
        ids = [random.randrange(vocabulary) for _ in range(before + given)]
        ids[0] = max(self.llama.token_bos(), 0)
        self._fill(ids[:before])
        steps = self.llama.generate(ids[before:], temp=0.0, reset=False)
        wanted = 1
        if not is_prompt:
            next(steps)
            wanted = task.tokens
        self.decoding.ns = self.sampling.ns = 0
        started = time.perf_counter_ns()
        for _ in range(wanted):
            next(steps)
        total = time.perf_counter_ns() - started
        return Timing(total, self.decoding.ns, self.sampling.ns)

    def _fill(self, ids: Sequence[int]) -> None:
        """Have so many tokens in the context, keeping what is there if it reaches far enough."""
        llama = self.llama
        if 0 < len(ids) <= llama.n_tokens and llama._ctx.kv_cache_seq_rm(-1, len(ids), -1):
            llama.n_tokens = len(ids)
            return
        llama.reset()
        llama.eval(ids)


def main() -> int:
    given = json.loads(sys.stdin.read())
    job = Job(**{**given, "tasks": [Task(**task) for task in given["tasks"]]})
    random.seed(1)
    subject = Subject(job)
    for index, task in enumerate(job.tasks):
        subject.run(task)  # warm-up
        for _ in range(task.repetitions):
            _say("sample", task=index, **asdict(subject.run(task)))
    _say("done")
    return 0


def _say(event: str, **content: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **content}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
