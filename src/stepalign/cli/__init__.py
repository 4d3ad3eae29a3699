"""The command line: parse, build, call one function. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli import feedback, looks, numbers, runs
from stepalign.errors import ConfigError, UserError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a language model on feedback - and see, token by token, what that feedback teaches.",
)

# In the order of --help.
COMMANDS = (
    runs.demo,
    runs.compare,
    runs.train,
    numbers.evaluate,
    numbers.grade,
    numbers.select,
    looks.signal,
    looks.show,
    looks.figure,
    looks.lab,
    feedback.critique,
    looks.report,
    runs.warmstart,
)
for command in COMMANDS:
    app.command()(command)
app.command("signal-of-base", hidden=True)(runs.signal_of_base)

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: DebugOption = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from stepalign import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point. Prints a user's error without a traceback and exits with its code."""
    debug = "--debug" in sys.argv
    # One torch thread a process unless the user says otherwise: small matrices lose on more.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = _one_line
    try:
        app(standalone_mode=False, args=[a for a in sys.argv[1:] if a != "--debug"])
    except UserError as error:
        _fail(error, debug)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:  # a full disk, a file without permission: what, where, no traceback
        if error.filename is None:
            raise
        _fail(ConfigError(error.strerror or str(error), where=str(error.filename)), debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the option parser
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "stepalign"
            _fail(ConfigError(error.format_message(), hint=f"{command} --help"), debug)  # type: ignore[attr-defined]
        raise


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings are meant for the user; those of libraries keep their place in the code."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    return f"warning: {message}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _fail(error: UserError, debug: bool) -> None:
    if debug:
        raise error
    prefix = "" if error.exit_code == 130 else "error: "
    print(f"{prefix}{error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
