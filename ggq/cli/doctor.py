"""``ggq doctor``: can the main job run here?"""

from __future__ import annotations

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output


@click.command()
@output_options
def doctor(out: Output) -> None:
    """Look at the machine, llama.cpp, the Python packages and the Hub's settings.

    Every line is ok, a warning, or a problem with its next step. Exits 1 if the main job cannot run.

    \b
    ggq doctor
    ggq doctor --json
    """
    from ggq.operations.doctor import examine

    with out.progress() as listener:
        report = examine(listener)
    out.result(report)
    rows = [
        (check.status, check.topic, check.finding + (f"\nnext: {check.next_step}" if check.next_step else ""))
        for check in report.checks
    ]
    out.table(("", "check", "finding"), rows)
    problems = sum(check.status == "problem" for check in report.checks)
    if problems:
        out.text(f"{problems} problem{'s' if problems > 1 else ''}: the main job cannot run yet.")
        click.get_current_context().exit(1)
    out.text("Ready. Next: ggq convert-and-quantize MODEL")
