"""The commands that check what other commands have written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.commands import app
from stepalign.cli.options import OutFolder, say, working


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


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A run, comparison, selection, signal, ..., or the file of evaluate.")],
    num: Annotated[
        int, typer.Option("--num", help="Rollouts to score again for each stored state of the weights.")
    ] = 32,
) -> None:
    """Every reported number once more from the stored samples, and tokens from the stored weights; exit code 1 where
    one differs."""
    from stepalign.verbs.verify import verify as run

    with working(transient=True, resume="", kept="nothing was changed") as display:
        found = run(folder, num=num, listener=display)
    say(*found.different)
    say(*(f"not verified: {line}" for line in found.skipped))
    counts = ", ".join(f"{count} {kind}" for kind, count in found.checked.items())
    say(f"{folder}: {counts or 'nothing'} recomputed, {len(found.different)} differ")
    if found.different:
        raise typer.Exit(1)


@app.command()
def reproduce(run: Annotated[Path, typer.Argument(help="A run folder.")], out: OutFolder) -> None:
    """A run again from its own folder, and where its first bit differs: file, step, key; exit code 1 if one does."""
    from stepalign.stopping import PROCESS
    from stepalign.verbs.reproduce import other_versions
    from stepalign.verbs.reproduce import reproduce as again

    with working("reproduce", resume="") as display:
        found = again(run, out, listener=display, stop=PROCESS)
    say(*other_versions(run, out))
    say(*map(str, found[:20]), *([f"and {len(found) - 20} other files differ"] if len(found) > 20 else []))
    if found:
        say(f"the first difference: {found[0]}")
        raise typer.Exit(1)
    say(f"{run} and {out}: the same bits in records, samples and weights")
