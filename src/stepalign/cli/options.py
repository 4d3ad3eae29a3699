"""Options that several commands share, and the messages that every long command may end with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepalign.errors import BudgetSpentError, ConfigError, UserError
from stepalign.outside import redacted, shown
from stepalign.stopping import IS_CHILD, PROCESS

if TYPE_CHECKING:
    from stepalign.verbs.progress import Display


def _folder(path: Path) -> Path:
    """The folder, unless it cannot become one: better known before hours of work than after."""
    blocking = next((p for p in (path, *path.absolute().parents) if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise ConfigError("--out must be a folder", where=str(path), hint=f"{blocking} is a file")
    return path


def _file(path: Path | None) -> Path | None:
    """The file, unless it cannot become one."""
    if path is not None and path.is_dir():
        hint = f"that is a folder: give {path / 'NAME.json'}"
        raise ConfigError("the output must be a file", where=str(path), hint=hint)
    if path is not None:
        _folder(path.absolute().parent)
    return path


Recipe = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe (arithmetic, gsm8k, ...).")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.", callback=_folder)]
OutFile = Annotated[Path, typer.Option("--out", help="File for what is written.", callback=_file)]
SamplesFile = Annotated[
    Path | None,
    typer.Option("--samples", help="JSON lines for the completions; beside the numbers by default.", callback=_file),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key; null unsets it.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what is in the folder.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print changed keys, prompts of one problem, memory, tokens, hours; do nothing else."
    ),
]

Measure = Annotated[
    bool, typer.Option("--measure", help="With --dry-run: load the model and work for 20 seconds to estimate hours.")
]


def note_new_run(out: Path, resume: bool) -> None:
    """Say that ``--resume`` has nothing to continue; a comparison gives it to every run."""
    if resume and not (out / "config.toml").exists() and not IS_CHILD:
        print(f"warning: nothing to continue in {out}: a new run begins", file=sys.stderr)


@contextmanager
def working(
    title: str = "", *, transient: bool = False, resume: str = " --resume", kept: str = "everything so far is saved"
) -> Iterator[Display]:
    """A display for a long command. One that is stopped or out of budget says with which words it goes on.

    Args:
        kept: what is on disk at any moment.
    """
    from stepalign.verbs.progress import Display

    again = shlex.join(["stepalign", *(redacted(word) for word in sys.argv[1:] if word != "--resume")]) + resume
    PROCESS.kept, PROCESS.again = kept, again
    with Display(title, transient=transient) as display:
        try:
            yield display
        except BudgetSpentError as error:  # a later --set wins over an earlier one
            hint = f"everything so far is saved; raise the budget and continue: {again}"
            error.hint = f"{hint} --set critic.token_budget=TOKENS"
            raise
        except UserError as error:
            if error.keeps_work:
                error.hint = f"{error.hint}; continue with: {again}"
            raise


def say(*lines: object) -> None:
    from stepalign.verbs.progress import console

    for text in lines:
        console.print(shown(text) if isinstance(text, str) else text)
