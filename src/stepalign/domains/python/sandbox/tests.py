"""The process that runs the tests: they call the solution in the other process and compare plain values here.

Since assertions, comparisons and the verdict live here and only plain values come across, no trick of the solution's -
its own ``__eq__``, another ``assert``, a look at the caller's frame, a file or an exit code - can make a test pass.
Run as a script by ``run_tests``; standard library only.
"""

import ast
import builtins
import json
import os
import sys
import traceback

_MAX_TEXT = 400


class _Lost(BaseException):
    """The solution's process has ended or sends what cannot be read. A test that catches it fails all the same."""


class SolutionError(Exception):
    """An exception of a class that is the solution's own."""


class _Solution:
    """The other end: calls go out, plain values come back."""

    def __init__(self, channel, values, verdicts):
        self.channel, self.values, self.verdicts = channel, values, verdicts
        self.num_calls = 0
        self.last_call = ""
        self.last_fault = None
        """The exception that the solution raised last, and where it did."""
        self.last_traceback = ""
        self.refused = False
        """Whether a test tried to hand over what cannot cross."""
        self.lost = ""
        """Why nothing more is to be expected of the solution."""

    def lose(self, why):
        self.lost = why
        return _Lost(why)

    def receive(self, *, may_stop=False):
        try:
            answer = self.channel.receive()
            if "value" in answer:
                if self.verdicts is not None:  # with its values in this process, an early end counts against it
                    os.write(self.verdicts, b"\n")
                    self.verdicts = None
                return answer, self.values.decode(answer["value"], self.remote)
        except EOFError:
            raise self.lose("the code ended its process") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
            what = str(error) if str(error) == "too large a value" else "an unreadable value"
            raise self.lose(f"the code returned {what}") from None
        self.last_traceback = str(answer.get("late") or answer.get("traceback", ""))
        if "late" in answer:
            raise self.lose("timed out")
        self.last_fault = self.exception(answer.get("fault"), str(answer.get("message", "")), may_stop)
        raise self.last_fault

    def exception(self, kinds, message, may_stop):
        """The same kind of exception, where it is a built-in one.

        The end of an iteration may only come from an iterator: out of a call it would end a test's own loop in silence,
        and ``all(map(check, cases))`` would be true.
        """
        kinds = [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []
        ends = {"StopIteration", "StopAsyncIteration"}
        for kind in kinds if may_stop or not ends & {*kinds} else ():
            known = getattr(builtins, kind, None)
            if isinstance(known, type) and issubclass(known, Exception):
                try:
                    return known(message)
                except Exception:  # UnicodeDecodeError wants more arguments
                    break
        return SolutionError(f"{kinds[0] if kinds else 'an exception'}: {message}")

    def fetch(self, name):
        self.channel.send({"name": name})
        return self.receive()[1]

    def import_(self, name, space=None, local=None, names=(), level=0):
        """Python's own ``__import__`` for the tests: what is no standard library is a file of the solution."""
        if level or name.partition(".")[0] in sys.stdlib_module_names:
            return __import__(name, space, local, names, level)
        self.channel.send({"module": name, "names": list(names or ())})
        return self.receive()[1]

    def call(self, handle, method, arguments, keywords, shown):
        request = {
            "handle": handle,
            "method": method,
            "arguments": self.values.encode(list(arguments), self.identify),
            "keywords": self.values.encode(dict(keywords), self.identify),
        }
        self.num_calls += 1
        self.last_call = shown
        try:
            self.channel.send(request)
        except BrokenPipeError:
            raise self.lose("the code ended its process") from None
        answer, value = self.receive(may_stop=method == "__next__")
        self.last_call = f"{shown} gave {_shown(value)}"
        self.update(arguments, answer.get("arguments"))
        return value

    def identify(self, value):
        """The handle of an object that came from the solution; nothing else can go there."""
        if type(value) is _Remote:
            return value._handle
        self.refused = True
        raise TypeError(f"a value of type {type(value).__name__} cannot be given to the solution")

    def update(self, arguments, data):
        """Lists, dictionaries and sets that the solution has changed in place."""
        try:
            changed = self.values.decode(data, self.remote)
            pairs = list(zip(arguments, changed, strict=True))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self.lose("the code returned an unreadable value") from None
        for mine, theirs in pairs:
            if type(mine) is type(theirs) is list:
                mine[:] = theirs
            elif type(mine) is type(theirs) and type(mine) in (dict, set):
                mine.clear()
                mine.update(theirs)

    def remote(self, handle):
        return _Remote(self, handle)


class _Remote:
    """An object that stays with the solution: it can be called, asked for attributes, iterated and indexed.

    Equality is identity: the solution has no say in what equals what.
    """

    def __init__(self, solution, handle, name="object"):
        self._solution, self._handle, self._name = solution, handle, name

    def _ask(self, method, *arguments, shown):
        return self._solution.call(self._handle, method, arguments, {}, shown)

    def __call__(self, *arguments, **keywords):
        words = [*map(_shown, arguments), *(f"{key}={_shown(value)}" for key, value in keywords.items())]
        return self._solution.call(self._handle, None, arguments, keywords, f"{self._name}({_short(', '.join(words))})")

    def __getattr__(self, name):
        found = self._ask("__getattr__", name, shown=f"{self._name}.{name}")
        if type(found) is _Remote:
            found._name = f"{self._name}.{name}"
        return found

    def __repr__(self):
        return f"<{self._name}>"


def _forwarded(method, form):
    def ask(self, *arguments):
        return self._ask(method, *arguments, shown=form.format(self._name, *map(_shown, arguments)))

    return ask


for _name in ("iter", "next", "len", "bool", "str"):
    setattr(_Remote, f"__{_name}__", _forwarded(f"__{_name}__", f"{_name}({{}})"))
_Remote.__getitem__ = _forwarded("__getitem__", "{}[{}]")  # pyright: ignore[reportAttributeAccessIssue]
_Remote.__contains__ = _forwarded("__contains__", "{1} in {0}")  # pyright: ignore[reportAttributeAccessIssue]


def main():
    job = json.load(sys.stdin)
    sys.path.insert(0, job["library"])
    import confinement  # pyright: ignore[reportMissingImports]
    import values  # pyright: ignore[reportMissingImports]

    sys.path.pop(0)
    verdicts = os.dup(1)
    channel = values.enter(job)
    try:
        confinement.confine(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"])
        result = _run(job["tests"], _Solution(channel, values, verdicts))
    except confinement.Unavailable as reason:
        result = _undecided("sandbox unavailable", reason)
    os.write(verdicts, json.dumps(result).encode())
    os._exit(0)


def _run(tests, solution):
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return _undecided("the tests do not compile", error)
    space = {"__name__": "tests", "__builtins__": {**vars(builtins), "__import__": solution.import_}}
    passed = 0
    where = ""
    try:
        _load(solution)
        for name in _asked_of_the_solution(tree):
            try:
                found = solution.fetch(name)
            except NameError:
                continue  # the test that uses it fails
            if type(found) is _Remote:
                found._name = name
            space[name] = found  # pyright: ignore[reportArgumentType]
        for node in tree.body:
            where = ast.get_source_segment(tests, node) or ""
            calls = solution.num_calls
            exec(compile(ast.Module([node], []), "<tests>", "exec", dont_inherit=True, optimize=0), space)
            passed += solution.num_calls > calls
        for name, function in list(space.items()):
            if name.startswith("test_") and callable(function) and type(function) is not _Remote:
                where = name
                function()
                passed += 1
    except _NotLoadedError as error:
        return error.args[0]
    except _Lost as loss:
        late = solution.last_traceback if solution.lost == "timed out" else ""
        return _failed(str(loss), f"{_failing(tests, loss, where)}\n{late}", passed)
    except BaseException as error:
        if solution.refused:
            return _undecided("the tests hand over what cannot cross", error)
        source = _failing(tests, error, where)
        if isinstance(error, AssertionError) and error is not solution.last_fault:
            message = f"{source}\n{solution.last_call}" + (f"\n{_short(str(error))}" if str(error) else "")
            return _failed("a test fails", message, passed)
        own = f"{type(error).__name__}: {_short(str(error))}"
        shown = solution.last_traceback if error is solution.last_fault else own
        return _failed("a test raises", f"{source}\n{shown}", passed)
    if solution.lost:
        return _failed(solution.lost, "", passed)
    if solution.refused:
        return _undecided("the tests hand over what cannot cross")
    if not solution.num_calls:
        return _undecided("the tests never call the code")
    return {"verdict": "correct", "reason": "all tests pass", "detail": "", "passed": passed}


class _NotLoadedError(Exception):
    """The code cannot be tested; holds the result."""


def _load(solution):
    """Wait until the solution's process is confined, then until its code has run once."""
    try:
        confined = solution.channel.receive()
    except (EOFError, ValueError) as error:
        raise _NotLoadedError(_undecided("sandbox unavailable", error)) from None
    if "unavailable" in confined:
        raise _NotLoadedError(_undecided("sandbox unavailable", confined["unavailable"]))
    try:
        answer = solution.channel.receive()
    except (EOFError, ValueError, RecursionError):
        raise solution.lose("the code ended its process") from None
    if "late" in answer:
        shown = str(answer["late"])[-2000:]
        raise _NotLoadedError({"verdict": "incorrect", "reason": "timed out", "detail": shown})
    if "fault" in answer:
        shown = str(answer.get("traceback", ""))[-2000:]
        raise _NotLoadedError({"verdict": "incorrect", "reason": "the code raises when it is loaded", "detail": shown})


def _asked_of_the_solution(tree):
    """Names that the tests read and that are not Python's own: those that a solution has to bring.

    The tests' own definitions come later and win; a solution cannot replace ``all`` or ``len``.
    """
    read = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return [name for name in dict.fromkeys(read) if not hasattr(builtins, name)]


def _failing(tests, error, where):
    """The statement of the tests in which an exception came up."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>"]
    line = lines[-1] if lines else None
    nodes = [node for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.stmt)]
    around = [node for node in nodes if line and node.lineno <= line <= (node.end_lineno or node.lineno)]
    best = max(reversed(around), key=lambda node: node.lineno, default=None)
    return ((best and ast.get_source_segment(tests, best)) or where)[:_MAX_TEXT]


def _undecided(reason, detail: object = ""):
    return {"verdict": "undecided", "reason": reason, "detail": str(detail)}


def _failed(reason, detail, passed):
    return {"verdict": "incorrect", "reason": reason, "detail": detail.strip(), "passed": passed}


def _shown(value):
    try:
        return _short(repr(value))
    except ValueError:  # thousands of digits
        return f"a long {type(value).__name__}"


def _short(text):
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


if __name__ == "__main__":
    main()
