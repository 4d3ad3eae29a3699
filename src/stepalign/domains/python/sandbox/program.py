"""The process that runs one whole program: untrusted code, confined, with a text for its standard input.

Run as a script by ``run_program``; standard library only.
"""

import ast
import contextlib
import io
import json
import os
import sys
import traceback

_MAX_TEXT = 16_000


class _Bounded(io.StringIO):
    """Keeps the beginning of a text."""

    def write(self, text):
        if (room := _MAX_TEXT - self.tell()) > 0:
            super().write(text[:room])
        return len(text)


def main():
    job = json.load(sys.stdin)
    sys.path.insert(0, job["library"])
    import confinement  # pyright: ignore[reportMissingImports]
    import values  # pyright: ignore[reportMissingImports]

    sys.path.pop(0)
    channel = values.enter({**job, "reads": os.open(os.devnull, os.O_RDONLY), "writes": os.dup(1)})
    try:
        confinement.confine(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"])
    except confinement.Unavailable as reason:
        channel.send({"unavailable": str(reason)})
        return
    output, fault, line = _Bounded(), "", None
    sys.stdin = io.TextIOWrapper(io.BytesIO(job["input"].encode()), encoding="utf-8")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            _run(job["code"], job["echo"])
        except SystemExit as end:
            fault = f"exit code {end.code}" if end.code not in (None, 0) else ""
        except BaseException as error:
            fault, line = _described(error)
    channel.send({"output": output.getvalue(), "fault": fault, "line": line})


def _run(code, echo):
    """Run a program; with ``echo`` the value of a last line that is an expression is printed, as in a notebook."""
    import linecache

    linecache.cache["program.py"] = (len(code), None, code.splitlines(keepends=True), "program.py")
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    tree = ast.parse(code, "program.py")
    last = [tree.body.pop()] if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else []
    for part, mode in ((tree, "exec"), (ast.Interactive(last), "single")):
        exec(compile(part, "program.py", mode, dont_inherit=True), space)


def _described(error):
    """The end of the traceback, of the program's own lines, and the number of the failing one."""
    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "program.py"]
        text = "".join(traceback.format_list(frames[-4:]) + traceback.format_exception_only(error))
        return text[-2000:].rstrip(), frames[-1].lineno if frames else getattr(error, "lineno", None)
    except BaseException:
        return "the program failed", None


if __name__ == "__main__":
    main()
