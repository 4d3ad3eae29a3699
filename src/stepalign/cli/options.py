"""Options that several commands share, and the two messages that every long command ends with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepalign.errors import BudgetSpentError, ConfigError, UserError

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe (arithmetic, gsm8k, ...).")
]


def _folder(path: Path) -> Path:
    """The folder, unless it cannot become one: better known before hours of work than after."""
    blocking = next((p for p in (path, *path.absolute().parents) if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise ConfigError("--out must be a folder", where=str(path), hint=f"{blocking} is a file")
    return path


def _file(path: Path) -> Path:
    """The file, unless it cannot become one."""
    if path.is_dir():
        raise ConfigError("--out must be a file", where=str(path), hint=f"that is a folder: give {path / 'NAME.json'}")
    _folder(path.absolute().parent)
    return path


OutOption = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.", callback=_folder)]
OutFileOption = Annotated[Path, typer.Option("--out", help="File for what is written.", callback=_file)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key; null unsets it.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue what is in the folder.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the configuration and the prompts of one problem, and do nothing else.")
]


def resume_command(verb: str, recipe: str, out: Path, settings: list[str] | None) -> str:
    changes = "".join(f" --set {shlex.quote(setting)}" for setting in settings or ())
    return f"stepalign {verb} {shlex.quote(recipe)} --out {shlex.quote(str(out))}{changes} --resume"


class Stopped(UserError):  # noqa: N818 - not a mistake: everything is saved
    exit_code = 130


def interrupted(command: str) -> Stopped:
    return Stopped("stopped; everything so far is saved", hint=f"continue with: {command}")


def budget_spent(error: BudgetSpentError, command: str) -> BudgetSpentError:
    """The same error with the command that goes on; a later --set wins over an earlier one."""
    hint = f"everything so far is saved; raise the budget and continue: {command} --set critic.token_budget=TOKENS"
    return BudgetSpentError(error.what, where=error.where, hint=hint)
