"""Build the documentation site from the Markdown of the repository: build/site, read offline, every link checked.

    python dev/build_site.py

The pages are README.md, the other documents of the root and docs/, in their places, so that their links hold here and
in the repository alike. Two pages are made: the commands with their options, and the public Python names with their
docstrings.
"""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer.main

import stepalign
from stepalign.cli import app

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site-source"
LINKED = ("docs", "recipes", "examples", "benchmarks", "src/stepalign/domains/arithmetic/README.md")


def stage() -> None:
    """Copy the documents, and what they link to, into SOURCE."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in [*ROOT.glob("*.md"), *(ROOT / name for name in LINKED)]:
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, target)
    (SOURCE / "docs" / "cli.md").write_text(command_page(), encoding="utf-8")
    (SOURCE / "docs" / "api.md").write_text(name_page(), encoding="utf-8")


def command_page() -> str:
    """Each command with the text of its help and a table of its options."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", "Each command answers `--help`; exit codes are in [formats.md](formats.md)."]
    for name, command in group.commands.items():
        if command.hidden:
            continue
        parts += [f"## `stepalign {name}`", inspect.cleandoc(command.help or "")]
        rows = [f"| {_names(it)} | {_one_line(getattr(it, 'help', None))} |" for it in command.params if not it.hidden]
        if rows:
            parts.append("\n".join(["| argument, option | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def name_page() -> str:
    """Each public name with its signature and docstring, from where it is defined."""
    parts = ["# Python names", "`import stepalign as sa`; [python.md](python.md) shows each name at work."]
    for name in sorted(stepalign.__all__, key=str.lower):
        value = getattr(stepalign, name)
        if isinstance(value, Mapping):
            parts.append(f"## `{name}`\n\nA table: " + ", ".join(f"`{key}`" for key in value) + ".")
        else:
            module = (
                value.__module__
                if inspect.isclass(value) or inspect.isfunction(value)
                else "stepalign.objectives.divergences"
            )
            parts.append(f"::: {module}.{getattr(value, '__qualname__', name)}")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    stage()
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
