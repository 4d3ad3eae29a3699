"""The sandbox: honest code passes honest tests, and nothing that a model could write passes, hangs or stays behind."""

# ruff: noqa: E501 - whole programs in strings

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from stepalign.domains.python import sandbox
from stepalign.domains.python.sandbox import Limits, confinement, run_tests
from stepalign.domains.python.sandbox.values import decode, encode

UNAVAILABLE = sandbox.why_unavailable() if sys.platform.startswith("linux") else "no Linux"
pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=f"no sandbox here: {UNAVAILABLE}")
SHORT = Limits(cpu_seconds=1, wall_seconds=5.0)


def children() -> set[str]:
    """Processes whose parent is this one, dead ones that nobody waited for included."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread of another test has just ended
            found.update((thread / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    before, files = children(), set(os.listdir("/proc/self/fd"))
    yield
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) <= len(files)


# ---------------------------------------------------------------------------------------------------------------------
# Honest code

HONEST = {
    "a function": ("def f(x): return x + 1", "assert f(1) == 2\nassert f(-1) == 0"),
    "types are kept": (
        "def f(x): return x",
        "for value in (1, 1.5, True, None, 'é\\ud800', b'\\0', (1,), [1], {'a': 1}, {1}, frozenset({1}), 2j, range(3)"
        "):\n    assert f(value) == value and type(f(value)) is type(value)",
    ),
    "numbers of any size": (
        "import math\ndef f(n): return math.factorial(n)",
        "import math\nassert f(3000) == math.factorial(3000)\nassert f(3001) != f(3000)",
    ),
    "a class": (
        "class Stack:\n def __init__(self): self.items = []\n def push(self, x): self.items.append(x)\n"
        " def __len__(self): return len(self.items)\n def __getitem__(self, i): return self.items[i]",
        "s = Stack()\nassert not s\ns.push(3)\nassert len(s) == 1 and s[0] == 3 and s.items == [3] and s",
    ),
    "an object without a length is true": ("class A: pass\ndef f(): return A()", "assert f()"),
    "a generator": (
        "def f():\n i = 0\n while True:\n  yield i\n  i += 1",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]",
    ),
    "arguments changed in place": (
        "def f(a, b, c): a.sort(); b['x'] = 1; c.add(2)",
        "a, b, c = [2, 1], {}, {1}\nf(a, b, c)\nassert (a, b, c) == ([1, 2], {'x': 1}, {1, 2})",
    ),
    "an expected exception": (
        "def f(x):\n if x < 0: raise ValueError('negative')\n return x",
        "try:\n    f(-1)\n    assert False, 'no exception'\nexcept ValueError as error:\n    assert 'negative' in str(error)",
    ),
    "keywords and constants": (
        "LIMIT = 3\ndef f(*, x=LIMIT): return x",
        "assert f() == LIMIT == 3\nassert f(x=4) == 4",
    ),
    "objects as arguments": (
        "class Node:\n def __init__(self, value, next=None): self.value, self.next = value, next\n"
        "def total(node): return node.value + (total(node.next) if node.next else 0)",
        "assert total(Node(1, Node(2))) == 3",
    ),
    "test functions": ("def f(x): return 2 * x", "def test_one():\n    assert f(1) == 2\ndef test_two():\n    assert f(2) == 4"),
    "threads and the standard library": (
        "import re, json, collections, itertools, datetime, decimal, heapq, random, threading\n"
        "def f():\n found = []\n t = threading.Thread(target=found.append, args=(1,)); t.start(); t.join()\n return found",
        "assert f() == [1]",
    ),
    "a main guard": ("def f(): return 1\nif __name__ == '__main__':\n input()", "assert f() == 1"),
    "printing": ("def f():\n print('x' * 10**6)\n return 1", "assert f() == 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_code_passes(name: str) -> None:
    outcome = run_tests(*HONEST[name])
    assert (outcome.verdict, outcome.reason, outcome.detail) == ("correct", "all tests pass", "")
    assert outcome.passed >= 1


def test_what_failed_is_told() -> None:
    def told(code: str, tests: str) -> tuple[str, str]:
        outcome = run_tests(code, tests)
        assert outcome.verdict == "incorrect"
        return outcome.reason, outcome.detail

    assert told("def f(x): return x", "assert f(1) == 1\nassert f(2) == 3, 'doubled'") == (
        "a test fails",
        "assert f(2) == 3, 'doubled'\nf(2) gave 2\ndoubled",
    )
    reason, detail = told("def f(x):\n    return [][x]", "def check():\n    assert f(1) == 1\ncheck()")
    assert reason == "a test raises"
    assert detail.startswith("assert f(1) == 1\n")
    assert detail.endswith("IndexError: list index out of range")
    assert 'File "solution.py", line 2, in f' in detail
    assert told("def g(): pass", "assert f(1) == 1") == (
        "a test raises",
        "assert f(1) == 1\nNameError: name 'f' is not defined",
    )
    reason, detail = told("def f(:", "assert f(1) == 1")
    assert reason == "the code raises when it is loaded"
    assert "SyntaxError" in detail
    # An exception that a test has dealt with is not the one that failed it.
    caught = "try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nassert f(1) == 2"
    assert told("def f(x): return 1 // x", caught)[0] == "a test fails"


def test_faulty_tests_are_undecided() -> None:
    def why(tests: str) -> str:
        outcome = run_tests("def f(x): return x", tests)
        assert outcome.verdict == "undecided"
        return outcome.reason

    assert why("assert f(1) ==") == "the tests do not compile"
    assert why("") == "the tests never call the code"
    assert why("assert 1 == 1") == "the tests never call the code"
    assert why("assert f(lambda x: x)(1) == 1") == "the tests hand over what cannot cross"
    patient = Limits(cpu_seconds=1, wall_seconds=PATIENCE)
    assert run_tests("f = 1", "while True: pass", patient).reason == "the tests ran out of time"


# ---------------------------------------------------------------------------------------------------------------------
# Hostile code. The tests hold a secret, so that nothing but a look at them could pass.

SECRET = "assert f(1) == 'a long secret 8157', 'secret'\nassert f(2) == 2"
HOSTILE = {
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "exit at once": "raise SystemExit(0)",
    "_exit": "import os\ndef f(x): os._exit(0)",
    "_exit at once": "import os\nos._exit(0)",
    "abort": "import os\nos.abort()",
    "equal to all": "class A:\n def __eq__(self, other): return True\n def __ne__(self, other): return False\n"
    " __hash__ = None\ndef f(x): return A()",
    "equal to all, as text": "class A(str):\n def __eq__(self, other): return True\n __hash__ = str.__hash__\n"
    "def f(x): return A('x')",
    "equal to all, as a number": "class A(int):\n def __eq__(self, other): return True\ndef f(x): return A(1)",
    "another assert": "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\n"
    "AssertionError = A\ndef f(x): return x",
    "other builtins": "import builtins\nfor n in ('all', 'any', 'len', 'isinstance', 'str', 'type', 'compile', 'exec'):\n"
    " setattr(builtins, n, lambda *a, **k: True)\n globals()[n] = lambda *a, **k: True\ndef f(x): return x",
    "a patched protocol": "import json, sys\nfor m in list(sys.modules.values()):\n"
    " for n in ('decode', 'encode', 'dumps', 'loads', '_answer', '_fault'):\n"
    "  if hasattr(m, n):\n   try: setattr(m, n, lambda *a, **k: {'verdict': 'correct', 'reason': 'all tests pass'})\n"
    "   except Exception: pass\ndef f(x): return x",
    "a verdict on every descriptor": "import os, json\n"
    "v = json.dumps({'verdict': 'correct', 'reason': 'all tests pass', 'detail': '', 'passed': 9}).encode() + b'\\n'\n"
    "for fd in range(64):\n try: os.write(fd, v)\n except OSError: pass\nos._exit(0)",
    "replies for all calls, in advance": "import os\nfor fd in range(3, 64):\n"
    " try: os.write(fd, b'{\"value\": true, \"arguments\": []}\\n' * 50)\n except OSError: pass\ndef f(x): return x",
    "unreadable replies": "import os\nfor fd in range(3, 64):\n try: os.write(fd, b'[' * 100000 + b'\\n')\n"
    " except OSError: pass\ndef f(x): return x",
    "frames": "import sys, gc\ndef f(x):\n frame = sys._getframe()\n while frame:\n"
    "  for value in [*frame.f_globals.values(), *frame.f_locals.values()]:\n"
    "   if isinstance(value, str) and 'secret' in value and value is not None and 'frame' not in value: return value\n"
    "  frame = frame.f_back\n for o in gc.get_objects():\n  if isinstance(o, str) and 'long secret' in o: return o\n"
    " return None",
    "the other process": "import os\ndef f(x):\n for pid in os.listdir('/proc'):\n"
    "  if pid.isdigit():\n   for n in ('mem', 'cmdline', 'environ', 'fd/0'):\n"
    "    data = open(f'/proc/{pid}/{n}', errors='replace').read()\n    if 'long secret' in data: return 'a long secret 8157'",
    "the test file": "import os\ndef f(x):\n for root in ('/', '/tmp', os.getcwd(), os.path.expanduser('~')):\n"
    "  for name in os.listdir(root): pass\n return None",
    "all of standard input": "import sys, os\nos.lseek(0, 0, 0)\ndef f(x): return sys.stdin.read()",
    "end the others": "import os, signal\ndef f(x):\n os.kill(os.getppid(), signal.SIGKILL)\n os.kill(-1, signal.SIGKILL)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'sleep 100 &'])",
    "another interpreter": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "memory": "x = [0]\nwhile True: x += x",
    "one long text": "x = 'a' * 10**11",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a huge value": "def f(x): return 'a' * 5_000_000",
    "a deep value": "def f(x):\n y = []\n for _ in range(100000): y = [y]\n return y",
    "a value in itself": "def f(x):\n y = []\n y.append(y)\n return y",
    "huge output": "import os\ndef f(x):\n for _ in range(1000): os.write(1, b'x' * 100000); os.write(2, b'x' * 100000)",
    "text that is no text": "def f(x): raise ValueError('\\ud800' * 1000000)",
    "an exception without a message": "class E(Exception):\n def __str__(self): raise E\ndef f(x): raise E",
    "an assertion of its own": "def f(x): raise AssertionError",
    "an end of iteration": "def f(x): raise StopIteration",
    "signals": "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
    " except Exception: pass\ndef f(x): signal.raise_signal(9)",
    "no code": "",
    "zero bytes": "\0",
    "nested deeply": "(" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_is_wrong_and_leaves_nothing(name: str) -> None:
    started = time.monotonic()
    outcome = run_tests(HOSTILE[name], SECRET, SHORT)
    assert outcome.verdict == "incorrect", outcome
    assert len(outcome.detail) < 5000
    assert "8157" not in outcome.detail.replace(SECRET.splitlines()[0], "")
    assert time.monotonic() - started < 60  # it comes back at all; the limits are 1 s of CPU and 5 s


FORGIVING = {
    "an end of iteration inside map": (
        "def f(x): raise StopIteration",
        "assert all(map(lambda case: f(case[0]) == case[1], [(1, 'secret'), (2, 'secret')]))",
    ),
    "the same by another name": (
        "class End(StopIteration): pass\ndef f(x): raise End",
        "assert all(map(lambda case: f(case[0]) == case[1], [(1, 'secret')]))",
    ),
    "an end of the process where a test catches all": (
        "import os\ndef f(x): os._exit(0)",
        "try:\n    assert f(1) == 'secret'\nexcept:\n    pass",
    ),
    "a name that the tests define": ("def check(x): return True\ndef f(x): return 0", "def check(x):\n    assert f(x) == 'secret'\ncheck(1)"),
    "a module that the tests import": ("class math:\n isclose = lambda *a: True\ndef f(x): return 0", "import math\nassert math.isclose(f(1), 8157.0)"),
    "an approximate number": ("class A(float):\n __sub__ = __rsub__ = lambda *a: 0.0\ndef f(x): return A('nan')", "assert abs(f(1) - 8157.5) < 1e-6"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGIVING)
def test_tests_that_forgive_much_are_not_passed_by_tricks(name: str) -> None:
    assert run_tests(*FORGIVING[name], SHORT).verdict == "incorrect"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "def f(x):\n    while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import time\ndef f(x): time.sleep(10**6)",
        "def f(x): return (9 ** 9) ** 9 ** 9",
        "import re\ndef f(x): re.match('(a+)+$', 'a' * 40 + 'b')",
    ],
)
def test_code_without_an_end_is_ended(code: str) -> None:
    outcome = run_tests(code, SECRET, Limits(cpu_seconds=1, wall_seconds=2.5))
    assert (outcome.verdict, outcome.reason) in [
        ("incorrect", "timed out"),
        ("incorrect", "the code ended its process"),
        ("incorrect", "a test raises"),
    ]


def test_nothing_can_be_written_and_little_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    mode = secret.stat().st_mode
    code = f"""
import os
def attempt(work):
    try:
        work()
        return "done"
    except Exception as error:
        return type(error).__name__
def f():
    path, folder = {str(secret)!r}, {str(tmp_path)!r}
    return [attempt(work) for work in (
        lambda: open(path).read(), lambda: open(path, "w"), lambda: open(folder + "/new", "x"), lambda: os.listdir("/"),
        lambda: os.remove(path), lambda: os.rename(path, path + "x"), lambda: os.mkdir(folder + "/x"),
        lambda: os.chmod(path, 0), lambda: os.truncate(path, 0), lambda: os.utime(path), lambda: os.symlink("a", folder + "/l"),
        lambda: os.link(path, folder + "/l"), lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: os.mkfifo(folder + "/p"),
        lambda: os.setxattr(path, "user.x", b"1"), lambda: open("/etc/passwd").read(),
    )]
"""
    assert run_tests(code, "assert f() == ['PermissionError'] * 16").verdict == "correct"
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode == mode
    assert os.listdir(tmp_path) == ["secret.txt"]


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    code = "import os, sys\ndef f(): return [k for k in os.environ if not k.startswith('LC_')], os.getcwd(), sys.path"
    site = "assert not any('site-packages' in p or 'tests' in p or 'src' in p for p in f()[2])"
    assert run_tests(code, f"assert f()[:2] == ([], '/')\n{site}").verdict == "correct"


REFUSED = confinement._calls("""
    # new processes and programs
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281,
    # other processes
    kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
    pidfd_open 434 434, pidfd_send_signal 424 424, pidfd_getfd 438 438, process_madvise 440 440,
    process_mrelease 448 448, process_vm_readv 310 270, process_vm_writev 311 271, ptrace 101 117, kcmp 312 272,
    # out of the group in which it is ended, or of its limits
    setpgid 109 154, setsid 112 157, prctl 157 167, prlimit64 302 261, setrlimit 160 164, setpriority 141 140,
    ioprio_set 251 30, sched_setscheduler 144 119, sched_setattr 314 274,
    # network, and all that another process could be reached by
    socket 41 198, socketpair 53 199, io_uring_setup 425 425, shmget 29 194, semget 64 190, msgget 68 186,
    mq_open 240 180, memfd_create 319 279, add_key 248 217, request_key 249 218, keyctl 250 219,
    # other views of the system, and large pieces of kernel that nothing here needs
    unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, mount_setattr 442 442, bpf 321 280, perf_event_open 298 241,
    userfaultfd 323 282, personality 135 92,
    # files
    openat2 437 437, name_to_handle_at 303 264, open_by_handle_at 304 265, creat 85 -, truncate 76 45, chmod 90 -,
    fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
    utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
    removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
""")

COLUMN = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)


def test_every_refused_call_is_refused() -> None:
    numbers = [numbers[COLUMN] for numbers in REFUSED.values() if numbers[COLUMN] is not None]  # type: ignore[index]
    assert len(numbers) > 50
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    return libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()
"""
    checks = "\n".join(f"assert call({number}) == (-1, 1), {number}" for number in numbers)
    outcome = run_tests(code, f"{checks}\nassert call({confinement._CONDITIONAL['clone'][COLUMN]}) == (-1, 1)")  # type: ignore[index]
    assert outcome.verdict == "correct", outcome


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_the_numbers_are_the_kernels(header: str, column: int) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    defined.setdefault("newfstatat", defined.get("fstatat", ""))  # its name on arm64
    ours = {**REFUSED, **confinement._ALLOWED, **confinement._CONDITIONAL, "clone3": (confinement._CLONE3,) * 2}
    for name, numbers in ours.items():
        if name in defined:
            assert numbers[column] == int(defined[name]), name
        else:
            assert numbers[column] is None or name in ("fchmodat2",), name


def test_an_end_of_the_caller_is_the_end_of_all() -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", "from stepalign.domains.python.sandbox import *\nimport sys\nprint(1, flush=True)\n"
         "run_tests('import time, signal\\nfor s in range(1, 32):\\n try: signal.signal(s, signal.SIG_IGN)\\n "
         "except Exception: pass\\ndef f(): time.sleep(10**6)', 'assert f() == 1', Limits(wall_seconds=1000.0))"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert caller.stdout is not None
    with caller.stdout:
        caller.stdout.readline()
        below: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while len(below) < 2 and time.monotonic() < deadline:
            below = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
            time.sleep(0.02)
        assert len(below) == 2
        # Both have given up the right to other processes, so their tie to the caller is in force.
        while not all("Seccomp:\t2" in Path(f"/proc/{p}/status").read_text() for p in below):
            time.sleep(0.02)
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
        alive = below
        while alive and time.monotonic() < deadline:
            alive = [p for p in below if Path(f"/proc/{p}").exists() and "Z" not in _state(p)]
            time.sleep(0.02)
    assert not alive


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_machine_without_a_sandbox_leaves_it_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_HERE", Path("/nowhere"))
    assert run_tests("def f(): return 1", "assert f() == 1").verdict == "undecided"
    monkeypatch.setattr(sandbox.subprocess, "Popen", _no_process)
    outcome = run_tests("def f(): return 1", "assert f() == 1")
    assert (outcome.verdict, outcome.reason) == ("undecided", "sandbox unavailable")


def _no_process(*_: object, **__: object) -> None:
    raise OSError("no process")


# ---------------------------------------------------------------------------------------------------------------------
# Values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


def told_apart(value: object) -> object:
    """A value with the types of everything in it; NaN equals itself."""
    if isinstance(value, dict):
        return [(told_apart(key), told_apart(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [told_apart(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return type(value).__name__, repr(value)


@given(value=PLAIN)
def test_plain_values_cross_unchanged(value: object) -> None:
    assert told_apart(decode(encode(value))) == told_apart(value)


@given(
    data=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["int", "float", "tuple", "set", "dict", "bytes", "complex", "range", "handle"]),
            inner, max_size=2,
        ),
        max_leaves=8,
    )
)  # fmt: skip
def test_replies_that_lie_are_refused_or_plain(data: object) -> None:
    """Whatever comes, it is an exact built-in value or one of three exceptions."""
    plain = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, type(None))
    with suppress(ValueError, TypeError, AttributeError):
        assert type(decode(data, lambda handle: handle)) in plain


def test_what_the_code_says_can_be_written() -> None:
    outcome = run_tests('def f():\n    raise ValueError("\\ud83d")', "assert f() == 1", SHORT)
    assert outcome.verdict == "incorrect"
    assert outcome.detail.encode().endswith("ValueError: \ufffd".encode())
