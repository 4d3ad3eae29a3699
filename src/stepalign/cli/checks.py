"""The commands that check what other commands have written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.commands import app
from stepalign.cli.options import say


@app.command()
def doctor(
    folder: Annotated[
        Path, typer.Argument(help="A folder that a command has written (run, comparison, ...), or a cache of replies.")
    ],
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without losing anything.")] = False,
) -> None:
    """What is damaged, missing or left over in a folder, a line each with what it means; exit code 1 if anything is."""
    from stepalign.verbs import doctor as verb

    found, mended = verb.doctor(folder, repair=repair)
    say(*(f"mended: {line}" for line in mended), *verb.finding_lines(folder, found))
    if found:
        raise typer.Exit(1)
    say(f"{folder}: all is well")
