"""Commands in real processes that have the imports of torch and transformers behind them.

``[*python(), "-m", "stepalign", ...]`` stands for ``[sys.executable, "-m", "stepalign", ...]``: a server of the test
process has imported them once, and forks. Files, folder, environment, signals, exit code and SIGKILL of the process
that asks are those of the forked one. Not for what looks at processes from outside (environments, groups, memory). A
test that compares runs starts one of them as usual, since forks share a hash seed. With ``CHILDREN`` in its environment
a command's own commands (stepalign, torchrun) are forked too.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

HEAVY = (
    *("torch._dynamo", "torch.optim", "torch.distributed.tensor", "torch.distributed.checkpoint", "scipy.optimize"),
    *(
        "torch.distributed.launcher.api",
        "torch.utils.checkpoint",
        "transformers",
        "transformers.models.qwen3.modeling_qwen3",
    ),
    *("transformers.generation", "transformers.models.auto.tokenization_auto", "accelerate", "numpy", "pydantic.main"),
    *("typer", "rich.live", "rich.progress", "httpx2", "sqlite3", "tomllib", "tomli_w", "safetensors.torch", "jinja2"),
)
CHILDREN = {"WARM_CHILDREN": "yes"}
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@functools.cache
def python() -> tuple[str, ...]:
    """The words before ``-m MODULE ...`` or ``-c CODE ...``. The server ends with this process."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or a sandbox without it
        return (sys.executable,)
    import atexit
    import subprocess
    import tempfile
    import time

    folder = tempfile.mkdtemp()
    place = os.path.join(folder, "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    atexit.register(server.communicate)
    while not os.path.exists(place):
        assert server.poll() is None
        time.sleep(0.02)
    return (sys.executable, "-IS", __file__, place)


def launcher() -> tuple[str, ...]:
    """The words before a whole command: ``PYTHON -m MODULE ...``."""
    return python() if len(python()) > 1 else ()


def behind(asking: int) -> int:
    """The process that a server has forked for one that asks."""
    if len(python()) == 1:
        return asking
    with open(f"/proc/{asking}/comm") as name:
        return int(name.read())


def serve(place: str) -> None:
    """Until standard input ends: its owner holds it open."""
    import gc
    import importlib
    import shutil

    gc.disable()
    for name in HEAVY:
        importlib.import_module(name)
    gc.enable()
    gc.freeze()  # what is imported stays, and stays shared
    command = f"exec {sys.executable}"
    asking = f"{command} -IS {__file__} {place}"
    with open(_shell(place), "w") as shell:
        shell.write(
            '#!/bin/sh\ncase "$1 $2 $3" in\n'
            f'"-u -m stepalign") shift; {asking} "$@";;\n'
            f'"-m stepalign "* | "-m torch.distributed.run "*) {asking} "$@";;\n'
            f'*) {command} "$@";;\nesac\n'
        )
        os.fchmod(shell.fileno(), 0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{place}.new")
        server.listen(64)
        os.rename(f"{place}.new", place)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the watchers
        while server in select.select([server, 0], [], [])[0]:
            request = server.accept()[0]
            if os.fork() == 0:
                server.close()
                _watch(request)
            request.close()
    shutil.rmtree(os.path.dirname(place))


def _shell(place: str) -> str:
    """A file that is an interpreter for any words, and forks for commands."""
    return os.path.join(os.path.dirname(place), "python")


def _watch(request: socket.socket) -> None:
    """Fork the process of a request, say its number, and its end; it does not outlive the one who asks."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, files, _, _ = socket.recv_fds(request, 1 << 20, 3)
    while not content.endswith(b"\n"):
        content += (more := request.recv(1 << 20))
        if not more:  # who asked has died
            os._exit(0)
    words, folder, environment = json.loads(content)
    pid = os.fork()
    if pid == 0:
        request.close()
        os.setpgid(0, 0)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        if CHILDREN.items() <= environment.items():
            sys.executable = _shell(sys.argv[1])
        _become(words)
    for file in files:
        os.close(file)
    request.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, request], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        request.sendall(f"{code}\n".encode())
    finally:
        os._exit(0)


def _become(words: list[str]) -> None:
    """``python WORDS``, where WORDS are ``-m MODULE ...`` or ``-c CODE ...``."""
    import runpy

    kind, what, *rest = words[not words[0].startswith("-") :]  # behind a launcher the interpreter is named too
    code = 1
    try:
        more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:1] = [os.getcwd(), *(path for path in more if path and path not in sys.path[1:])]
        sys.argv = [f"-{kind[1]}", *rest]
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        import atexit
        import threading

        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ask(place: str, words: list[str]) -> None:
    """Be the process that a server forks: pass signals on, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as request:
        request.connect(place)
        early: list[int] = []
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: early.append(number))
        content = json.dumps([words, os.getcwd(), dict(os.environ)]) + "\n"
        socket.send_fds(request, [content.encode()[:1]], [0, 1, 2])
        request.sendall(content.encode()[1:])
        answers = request.makefile()
        pid = int(answers.readline())
        with suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write(str(pid))
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        for number in early:
            os.kill(pid, number)
        code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask(sys.argv[1], sys.argv[2:])
