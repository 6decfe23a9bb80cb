"""``ggq setup``: build llama.cpp's tools, once."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output, human_seconds


@click.command()
@click.option(
    "--backend", type=click.Choice(["auto", "cpu", "cuda", "metal", "vulkan"], case_sensitive=False),
    default="auto", show_default=True,
    help="What to compute on; auto takes CUDA where its compiler and an NVIDIA driver are.",
)  # fmt: skip
@click.option("--portable", is_flag=True, help="No instructions that only this CPU has.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at once. Default: the usable cores.")
@click.option(
    "--llama-cpp", type=click.Path(path_type=Path), envvar="GGQ_LLAMA_CPP", show_envvar=True, metavar="DIR",
    help="Check a llama.cpp build that exists, and build none.",
)  # fmt: skip
@output_options
def setup(backend: str, portable: bool, jobs: int | None, llama_cpp: Path | None, out: Output) -> None:
    """Get llama.cpp's pinned source, build its tools, test them, and install the Python binding.

    Takes some minutes, once; asks of the system only a C++ compiler. Run again, it resumes or does nothing.

    \b
    ggq setup
    ggq setup --backend cuda
    ggq setup --llama-cpp ~/llama.cpp/build
    """
    from ggq.setup import build
    from ggq.setup.variants import Backend

    with out.progress() as listener:
        if llama_cpp is not None:
            found = build.adopt(llama_cpp, listener)
        else:
            options = build.BuildOptions(Backend(backend.lower()), portable, jobs)
            found = build.setup(options, listener)
    for caveat in found.caveats:
        out.warning(caveat)
    out.result(found)
    out.text(f"llama.cpp {found.commit or 'of an unknown commit'} is ready in {found.bin_dir}.")
    if found.build is not None:
        out.text(
            f"Backends {', '.join(found.build.backends)} ({found.build.variant}), {found.build.compiler},"
            f" built in {human_seconds(found.build.seconds)}."
        )
    if llama_cpp is not None:
        out.text(f"To use it:  export GGQ_LLAMA_CPP={shlex.quote(str(found.bin_dir))}")
    out.hint("Next: ggq doctor, or ggq convert-and-quantize MODEL")
