"""Plain values as JSON between the two processes; whatever is not plain crosses as a handle.

This file is run by the child processes outside the package and must not import from it.
"""

import json

_CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value, handle=None):
    """A value as JSON-ready data.

    ``handle`` turns what is not plain into a number; without it such a value is a TypeError. Subclasses of plain types
    become plain.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float.__repr__(value)}
    if isinstance(value, complex):
        return {"complex": [float.__repr__(value.real), float.__repr__(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(item, handle) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(key, handle), encode(item, handle)] for key, item in dict.items(value)]}
    if isinstance(value, range):
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
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
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(*map(float, content))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "range":
        return range(*(int(bound, 16) for bound in content))
    if kind == "dict":
        return {decode(key, handle): decode(item, handle) for key, item in content}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](decode(item, handle) for item in content)
    if kind == "handle" and handle is not None and type(content) is int:
        return handle(content)
    raise ValueError("not an encoded value")


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
