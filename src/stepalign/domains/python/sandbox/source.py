"""The source of an untrusted program: its files as modules, its time, and the line at which it fails.

This file is run by the child processes outside the package and must not import from it.
"""

import ast
import builtins
import io
import linecache
import os
import re
import signal
import sys
import traceback
from importlib.machinery import ModuleSpec, SourceFileLoader

_MAX_TEXT = 2000
_MAX_VALUE = 80
_PLAIN = (int, float, str, bool, type(None))


class TimeLimit(BaseException):
    """The CPU time is spent. Raised at the line that runs then."""


def watch_time():
    """Raise TimeLimit at the soft limit of the CPU time. Code that catches it is killed a second later."""

    def spent(*_):
        raise TimeLimit

    signal.signal(signal.SIGXCPU, spent)


class _InMemory(SourceFileLoader):
    """A module whose source is in no file."""

    def __init__(self, name, path, text):
        super().__init__(name, path)
        self.text = text

    def get_data(self, path):
        return self.text.encode()

    def path_stats(self, path):
        raise OSError


class Files:
    """The files of a program in memory: modules that it can import, texts that it can open, lines for tracebacks."""

    def __init__(self, main, code, files):
        self.main, self.texts = main, {**files, main: code}
        for name, text in self.texts.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        if files:
            sys.meta_path.insert(0, self)  # pyright: ignore[reportArgumentType]
            builtins.open = io.open = self.open

    def find_spec(self, name, path=None, target=None):
        stem = name.replace(".", "/")
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if file in self.texts and file != self.main:
                return ModuleSpec(
                    name, _InMemory(name, file, self.texts[file]), origin=file, is_package=stem != file[:-3]
                )
        inside = any(file.startswith(f"{stem}/") for file in self.texts)
        return ModuleSpec(name, None, is_package=True) if inside else None

    def open(self, file, mode="r", *arguments, **options):
        name = os.path.normpath(file) if isinstance(file, str) else file
        if name not in self.texts or set(mode) & set("wax+"):
            return _open(file, mode, *arguments, **options)
        text = self.texts[name]
        return io.BytesIO(text.encode()) if "b" in mode else io.StringIO(text, newline=None)

    def describe(self, error, frames=4):
        """(the end of the traceback in the program's own lines, number of the failing line of its main file).

        Plain values of the names in the failing line are told; of a program out of time, the loop that it is in.
        """
        try:
            own = [
                (frame, number)
                for frame, number in traceback.walk_tb(error.__traceback__)
                if frame.f_code.co_filename in self.texts
            ]
            listed = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in self.texts]
            lines = [number for frame, number in own if frame.f_code.co_filename == self.main]
            line = lines[-1] if lines else getattr(error, "lineno", None)
            if isinstance(error, TimeLimit):
                return self._loop(*own[-1]) if own else "", line
            values = self._values(*own[-1]) if own else ""
            end = [values, *traceback.format_exception_only(error)]
            return "".join(traceback.format_list(listed[-frames:]) + end)[-_MAX_TEXT:].rstrip(), line
        except BaseException:
            return "the program failed", None

    def _values(self, frame, number):
        words = dict.fromkeys(re.findall(r"[^\W\d]\w*", linecache.getline(frame.f_code.co_filename, number)))
        found = [(name, frame.f_locals[name]) for name in words if name in frame.f_locals]
        told = [f"{name} = {_short(value)}" for name, value in found if _is_plain(value)]
        return f"    where {', '.join(told[:6])}\n" if told else ""

    def _loop(self, frame, number):
        file = frame.f_code.co_filename
        loops = [
            node.lineno
            for node in ast.walk(ast.parse(self.texts[file]))
            if isinstance(node, ast.For | ast.While) and node.lineno <= number <= (node.end_lineno or number)
        ]
        at = max(loops, default=number)
        return f'File "{file}", line {at}\n    {linecache.getline(file, at).strip()}'


_open = open


def _is_plain(value, depth=2):
    if type(value) in (list, tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value[:50])
    if type(value) is dict:
        return depth > 0 and all(_is_plain(item, depth - 1) for pair in list(value.items())[:50] for item in pair)
    return type(value) in _PLAIN


def _short(value):
    text = repr(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"
