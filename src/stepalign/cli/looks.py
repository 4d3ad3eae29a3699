"""Commands that show: signal, lab, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.options import OutOption, SetOption


def signal(
    run: Annotated[Path, typer.Argument(help="A run folder with stored rollouts.")],
    out: OutOption,
    contexts: Annotated[str, typer.Option("--contexts", help="Context designs, separated by commas.")] = "",
    model: Annotated[str, typer.Option("--model", help="Score with this model instead of the run's first one.")] = "",
    num: Annotated[int, typer.Option("--num", help="Rollouts to score, from the first on.", min=1)] = 256,
    settings: SetOption = None,
) -> None:
    """A_t of stored rollouts under several contexts: signal.json and a page."""
    from stepalign.progress import console
    from stepalign.signal.stored import analyse_run

    page = analyse_run(
        run, out, contexts=tuple(c for c in contexts.split(",") if c), model=model, num=num, settings=settings or ()
    )
    console.print(f"page: {page}")


def lab(
    model: Annotated[str, typer.Argument(help="A model folder, a Hub name, or embedded:arithmetic.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts, temperature and critic; else the defaults.")] = "",
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; any free one by default.", min=0)] = 0,
    settings: SetOption = None,
) -> None:
    """A local page: edit feedback and see at once which tokens it reinforces or suppresses."""
    from stepalign.lab import open_lab
    from stepalign.progress import console

    def announce(address: str) -> None:
        console.print(f"lab: {address}\nCtrl-C ends it.", soft_wrap=True, highlight=False)

    open_lab(model, recipe=recipe, port=port, settings=settings or (), announce=announce)


def report(folder: Annotated[Path, typer.Argument(help="A comparison folder.")]) -> None:
    """Write the page of a comparison again, finished or not."""
    from stepalign.compare import rewrite_results
    from stepalign.progress import console

    console.print(f"page: {rewrite_results(folder)}")
