"""The process that runs one whole program, once for each text that it gets for its standard input.

Each run is a child of its own, forked before any untrusted code has run and confined, with real standard streams. Run
as a script by ``run_cases``; standard library only.
"""

import ast
import atexit
import builtins
import json
import os
import signal
import sys
import threading
import time


def main():
    job = json.load(sys.stdin)
    sys.path.insert(0, job["library"])
    import confinement  # pyright: ignore[reportMissingImports]
    import source  # pyright: ignore[reportMissingImports]
    import values  # pyright: ignore[reportMissingImports]

    sys.path.pop(0)
    for name in ("confinement", "source", "values"):
        del sys.modules[name]  # a file of the program may have that name
    channel = values.enter({**job, "reads": os.open(os.devnull, os.O_RDONLY)})
    for text in job["inputs"]:
        channel.send(_parent_of(job, text, confinement, source, values))


def _parent_of(job, text, confinement, source, values):
    """One run in a child: its output, and what it says of its end."""
    (output, prints), (end, ends) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(prints, 1)
        for other in (output, prints, end, job["writes"]):
            os.close(other)
        _child(job, text, values.Channel(os.open(os.devnull, os.O_RDONLY), ends, job["max_bytes"]), confinement, source)
        os._exit(0)
    os.close(prints)
    os.close(ends)
    pipes = {output: job["most"], end: job["max_bytes"]}
    found, limit, begun = {output: b"", end: b""}, job["wall_seconds"], time.monotonic()
    ended, status, waited, deadline = 0, 0, 0.0, begun + limit
    while not ended and time.monotonic() < deadline:
        drained = values.drain(pipes, found, deadline)
        waited = values.seconds_waited(child)
        ended, status = os.waitpid(child, os.WNOHANG)
        deadline = begun + limit + min(waited, 2 * limit)  # the wait for a processor does not count against it
        if drained and not ended:  # a program may close its streams and go on
            time.sleep(0.001)
    passed = time.monotonic() - begun
    if ended:
        values.drain(pipes, found, deadline)
    else:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    os.close(output)
    os.close(end)
    late = not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    said = found[end].decode(errors="replace")
    if not said and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:  # os._exit(0)
        said = json.dumps({"fault": "", "trace": "", "line": None}) + "\n"
    times = {"seconds": max(0.0, passed - waited), "starved": not ended and waited >= 2 * limit}
    return {"output": found[output].decode(errors="replace"), "end": said, "late": late, **times}


def _child(job, text, channel, confinement, source):
    _attach(text.encode(errors="replace"), os.dup(1) if job["echo"] else os.open(os.devnull, os.O_WRONLY))
    builtins.exit = builtins.quit = sys.exit  # the module ``site`` has them, and is not loaded
    files = source.Files("program.py", job["code"], job["files"])
    source.watch_time()
    fault, trace, line = "", "", None
    try:
        confinement.confine(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"])
        try:
            _run(job["code"], job["echo"])
        finally:
            _finish()
    except confinement.Unavailable as reason:
        channel.send({"unavailable": str(reason)})
        return
    except SystemExit as end:
        fault = f"exit code {end.code}" if end.code not in (None, 0) else ""
    except source.TimeLimit as error:
        fault, (trace, line) = "timed out", files.describe(error)
    except BaseException as error:
        fault, (trace, line) = type(error).__name__, files.describe(error)
    try:
        sys.stdout.flush()
    except BaseException:
        fault = fault or "the output cannot be written"
    channel.send({"fault": fault[:2000], "trace": trace, "line": line})


def _attach(text, errors):
    """Give the program its input, and its errors a place."""
    source = os.memfd_create("input")
    with open(source, "wb", closefd=False) as file:
        file.write(text)
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.dup2(errors, 2)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if os.path.sameopenfile(1, 2):
        sys.stderr = sys.__stderr__ = sys.stdout  # in the order in which it is written


def _run(code, echo):
    """Run a program; with ``echo`` the value of a last line that is an expression is printed, as in a notebook."""
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    tree = ast.parse(code, "program.py")
    last = [tree.body.pop()] if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else []
    for part, mode in ((tree, "exec"), (ast.Interactive(last), "single")):
        exec(compile(part, "program.py", mode, dont_inherit=True), space)


def _finish():
    """What Python does at its end: threads that are no daemons are waited for, then comes what was registered."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


if __name__ == "__main__":
    main()
