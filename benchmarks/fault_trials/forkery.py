"""A launcher of comparisons that starts their runs by a fork of a process which has the imports behind it.

As a script it is what ``compare.launcher`` names: it hands its words, environment and standard files to the server at
a socket, and ends as the forked run ends. Both are in one process group; of its signals only the run takes notice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


def serve(path: Path) -> int:
    """Fork the server of the socket ``path``; its process."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    listening.settimeout(2.0)
    lab = os.getpid()
    if pid := os.fork():
        listening.close()
        return pid
    while os.getppid() == lab:
        try:
            there, _ = listening.accept()
        except TimeoutError:
            continue
        message, files, _, _ = socket.recv_fds(there, 1 << 20, 3)
        asked = json.loads(message)
        if (run := os.fork()) == 0:
            _become(asked, files)
        for file in files:
            os.close(file)
        threading.Thread(target=_answer, args=(run, there), daemon=True).start()
    os._exit(0)


def _become(asked: dict[str, Any], files: list[int]) -> None:
    from fault_trials.lab import become

    os.setpgid(0, asked["group"])
    os.chdir(asked["folder"])
    sys.path.insert(0, asked["folder"])
    become(asked["words"], files, asked["environment"])


def _answer(run: int, there: socket.socket) -> None:
    _, status = os.waitpid(run, 0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(OSError):  # the one that asked was killed
        there.sendall(bytes([code if code >= 0 else 128 - code]))
    there.close()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    path, _, _, _, *words = sys.argv[1:]  # python -m stepalign WORDS
    there = socket.socket(socket.AF_UNIX)
    there.connect(path)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("STEPALIGN_", "OMP_"))}
    asked = json.dumps({"group": os.getpgrp(), "folder": os.getcwd(), "words": words, "environment": kept}).encode()
    socket.send_fds(there, [asked], [0, 1, 2])
    sys.exit((there.recv(1) or b"\xff")[0])


if __name__ == "__main__":
    main()
