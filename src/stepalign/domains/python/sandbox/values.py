"""Plain values as JSON between the two processes; what is not plain crosses as a handle.

This file is run by the child processes outside the package and must not import from it.
"""

import json
import os
import select
import time

_CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS = {
    "int": (int, hex, lambda data: int(data, 16)),
    "float": (float, float.__repr__, float),
    "complex": (
        complex,
        lambda value: [float.__repr__(value.real), float.__repr__(value.imag)],
        lambda data: complex(*map(float, data)),
    ),
    "bytes": ((bytes, bytearray), lambda value: bytes(value).hex(), bytes.fromhex),
    "range": (
        range,
        lambda value: [hex(value.start), hex(value.stop), hex(value.step)],
        lambda data: range(*(int(bound, 16) for bound in data)),
    ),
}
"""Name -> (types, value to JSON-ready data, data to value)."""


def encode(value, handle=None):
    """A value as JSON-ready data.

    ``handle`` turns what is not plain into a number; without it such a value is a TypeError. Subclasses of plain types
    become plain.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, list):
        return [encode(item, handle) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(key, handle), encode(item, handle)] for key, item in dict.items(value)]}
    for name, (kind, to_data, _) in _SCALARS.items():
        if isinstance(value, kind):
            return {name: to_data(value)}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(item, handle) for item in kind.__iter__(value)]}
    if handle is None:
        raise TypeError(f"a value of type {type(value).__name__} cannot be given to the solution")
    return {"handle": handle(value)}


def decode(data, handle=None):
    """The value behind ``encode``'s data, made of exact built-in types and of what ``handle`` makes of handles.

    Raises ValueError or TypeError for anything else: the data may come from a hostile program.
    """
    if data is None or isinstance(data, bool | str):
        return data
    if isinstance(data, list):
        return [decode(item, handle) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("not an encoded value")
    ((kind, content),) = data.items()
    if kind in _SCALARS:
        return _SCALARS[kind][2](content)
    if kind == "dict":
        return {decode(key, handle): decode(item, handle) for key, item in content}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](decode(item, handle) for item in content)
    if kind == "handle" and handle is not None and type(content) is int:
        return handle(content)
    raise ValueError("not an encoded value")


def drain(pipes, found, deadline):
    """Read pipes to their ends and keep so many bytes of each; False where it takes too long."""
    open_ = set(pipes)
    while open_:
        ready = select.select(list(open_), [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            return False
        for pipe in ready:
            piece = os.read(pipe, 65536)
            found[pipe] += piece[: max(0, pipes[pipe] - len(found[pipe]))]
            if not piece:
                open_.discard(pipe)
    return True


def enter(job):
    """The channel of a child process, which has no standard streams from here on."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    return Channel(job["reads"], job["writes"], job["max_bytes"])


class Channel:
    """Lines of JSON over two file descriptors, each line bounded."""

    def __init__(self, reads, writes, max_bytes):
        # Open as long as the process lives.
        self._reads = open(reads, "rb", buffering=65536)  # noqa: SIM115
        self._writes = open(writes, "wb", buffering=0)  # noqa: SIM115
        self._max_bytes = max_bytes

    def send(self, message):
        """Raises ValueError for a message above the bound."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > self._max_bytes:
            raise ValueError("too large a value")
        view = memoryview(line)
        while view:
            view = view[self._writes.write(view) :]

    def receive(self):
        """Raises EOFError at the end, ValueError for a line that is too long or no JSON object."""
        line = self._reads.readline(self._max_bytes + 1)
        if not line:
            raise EOFError
        if not line.endswith(b"\n"):
            raise ValueError("too large a value" if len(line) > self._max_bytes else "half a value")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message


def seconds_waited(process, root="/proc"):
    """How long a process, not yet waited for, has been ready to run without a processor: of the thread that waited
    longest. Sleep does not count. 0.0 where the kernel does not say."""
    found = [0]
    try:
        for thread in os.listdir(f"{root}/{process}/task"):
            with open(f"{root}/{process}/task/{thread}/schedstat") as file:
                found.append(int(file.read().split()[1]))
    except (OSError, ValueError, IndexError):
        pass
    return max(found) / 1e9
