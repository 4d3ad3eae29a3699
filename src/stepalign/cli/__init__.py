"""The command line: parse, and call one function. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stepalign.errors import ConfigError, UserError
from stepalign.outside import keep_secrets_of, shown
from stepalign.stopping import PROCESS, Interrupted

if TYPE_CHECKING:
    from stepalign.cli.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """``app``, with the commands of all tables. Signals are heard before the option parser is loaded."""
    if name != "app":
        raise AttributeError(name)
    from stepalign.cli import checks, commands, looks  # noqa: F401 - their commands join those of the table

    return commands.app


_OF_THE_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EIO: "the disk fails: copy the folder to another one",
}


def main() -> None:
    """Entry point. Prints a user's error without a traceback and exits with its code; 130 after Ctrl-C, 143 after
    SIGTERM."""
    try:
        with PROCESS.listening():
            _main()
    except SystemExit:
        if PROCESS.asked:  # whatever a thread still does, and whatever signal comes
            sys.stdout.flush()
            os._exit(PROCESS.exit_code)
        raise
    except Interrupted:  # before the command has begun, or behind its end
        print(PROCESS.line, file=sys.stderr)
        raise SystemExit(PROCESS.exit_code) from None


def _main() -> None:
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = _one_line
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without a character shows its number
            stream.reconfigure(errors="backslashreplace")
    keep_secrets_of([url for word in sys.argv for url in re.findall(r"https?://.*", word)])
    PROCESS.kept = "nothing is left half done; give the command again"  # long commands say more
    code = 0
    try:
        code = __getattr__("app")(standalone_mode=False, args=[a for a in sys.argv[1:] if a != "--debug"])
    except UserError as error:
        _fail(error, debug)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:  # a full disk, a file without permission: what, where, no traceback
        hint = _OF_THE_DISK.get(error.errno or 0)
        if error.filename is None and hint is None:
            raise
        if hint:
            hint += f"; continue with: {PROCESS.again}" if PROCESS.again else "; then give the command again"
        _fail(ConfigError(error.strerror or str(error), where=error.filename and str(error.filename), hint=hint), debug)
    except Exception as error:
        if debug or not PROCESS.asked:  # else a library has taken the interruption for a fault of its own
            if not hasattr(error, "format_message"):
                raise
            usage: Any = error  # an error of the option parser
            command = usage.ctx.command_path if getattr(usage, "ctx", None) else "stepalign"
            _fail(ConfigError(usage.format_message(), hint=f"{command} --help"), debug)
    if code == 130 or PROCESS.asked:
        print(shown(PROCESS.line), file=sys.stderr)
        code = PROCESS.exit_code
    if isinstance(code, int) and code:  # the parser returns the code of an exit, 130 for Ctrl-C
        raise SystemExit(code)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings are meant for the user; those of libraries keep their place in the code."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    text = shown(message)
    return f"warning: {text}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {text}\n"


def _fail(error: UserError, debug: bool) -> NoReturn:
    if debug:
        raise error
    prefix = "" if error.exit_code == 130 else "error: "
    print(f"{prefix}{error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
