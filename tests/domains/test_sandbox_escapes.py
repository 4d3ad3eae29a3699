"""Ways out of the sandbox: none reaches a process, a file, a queue or a clock, and none takes back a verdict."""

# ruff: noqa: E501 - whole programs in strings

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepalign.domains.python import sandbox
from stepalign.domains.python.sandbox import Limits, confinement, run_tests

UNAVAILABLE = sandbox.why_unavailable() if sys.platform.startswith("linux") else "no Linux"
pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=f"no sandbox here: {UNAVAILABLE}")

# Calls of the C library; v is a process of the same user, r and w a pipe, s a file of the standard library, d its
# folder, p a file outside, m, q, a a shared memory, a message queue and a semaphore that exist.
ESCAPES = """
# signals by way of a file's owner
c.fcntl(r, 8, v)  c.fcntl(r, 8, -v)  c.fcntl(w, 8, v)  c.fcntl(r, 10, 9)  c.fcntl(r, 15, pair(1, v))  c.fcntl(r, 15, pair(0, v))
c.fcntl(r, 15, pair(2, v))  c.fcntl(r, 4, 0x2000)  c.fcntl(w, 4, 0x2000)  c.fcntl(r, 4, 0x2800)  c.fcntl(r, 4, long(0x100002000))
c.fcntl(s, 1024, 0)  c.fcntl(s, 1024, 1)  c.fcntl(d, 1026, 0x80000002)  c.fcntl(d, 1026, 0x7F)  c.syscall(nr('fcntl'), r, long(0x100000008), v)
c.ioctl(r, 0x8901, pair(v, 0))  c.ioctl(r, 0x8902, pair(v, 0))  c.ioctl(r, 0x5452, pair(1, 0))  c.ioctl(w, 0x5452, pair(1, 0))
c.syscall(nr('ioctl'), r, long(0x100005452), pair(1, 0))
# terminals and devices
c.ioctl(0, 0x5412, b'x')  c.ioctl(0, 0x5410, pair(v, 0))  c.ioctl(0, 0x540E, 1)  c.ioctl(0, 0x5422, 0)  c.ioctl(0, 0x541D, 0)
c.ioctl(0, 0x5423, pair(0, 0))  c.ioctl(0, 0x4B4E, 9)  c.ioctl(0, 0x5602, b'0' * 16)  c.ioctl(s, 0x40086602, pair(16, 0))
c.ioctl(s, 0x40049409, s)  c.ioctl(s, 0xB701, 0)  c.ioctl(s, 0xC0045877, 0)  c.ioctl(s, 0x125F, 0)  c.ioctl(s, 0x5877, 0)
# signals, plainly
c.kill(v, 9)  c.kill(-v, 9)  c.kill(-1, 9)  c.kill(0, 0)  c.killpg(v, 9)  c.sigqueue(v, 9, None)  c.syscall(nr('tkill'), v, 9)
c.syscall(nr('tgkill'), v, v, 9)  c.syscall(nr('rt_sigqueueinfo'), v, 9, b'0' * 128)  c.syscall(nr('rt_tgsigqueueinfo'), v, v, 9, b'0' * 128)
c.syscall(nr('pidfd_open'), v, 0)  c.syscall(nr('pidfd_send_signal'), r, 9, None, 0)  c.syscall(nr('pidfd_getfd'), r, 0, 0)
c.timer_create(0, event(4, v), handle)  c.timer_create(0, event(0, v), handle)  c.prctl(1, 9, 0, 0, 0)  c.prctl(1, 0, 0, 0, 0)
c.prctl(36, 1, 0, 0, 0)  c.prctl(4, 1, 0, 0, 0)  c.prctl(0x59616D61, v, 0, 0, 0)  c.prctl(22, 1, 0, 0, 0)  c.prctl(23, 0, 0, 0, 0)
# other processes
c.ptrace(16, v, 0, 0)  c.ptrace(0x4206, v, 0, 0)  c.ptrace(0, 0, 0, 0)  c.process_vm_readv(v, vector, 1, vector, 1, 0)
c.process_vm_writev(v, vector, 1, vector, 1, 0)  c.syscall(nr('process_madvise'), r, vector, 1, 20, 0)
c.syscall(nr('process_mrelease'), r, 0)  c.syscall(nr('kcmp'), v, v, 0, 0, 0)  c.sched_setaffinity(v, 8, pair(1, 0))
c.sched_setaffinity(0, 8, pair(1, 0))  c.sched_setscheduler(v, 3, pair(0, 0))  c.sched_setparam(v, pair(0, 0))
c.syscall(nr('sched_setattr'), v, b'0' * 48, 0)  c.setpriority(0, v, 19)  c.setpriority(2, 0, 19)  c.nice(5)
c.syscall(nr('ioprio_set'), 1, v, 0x6000)  c.prlimit(v, 0, pair(1, 1), None)  c.prlimit(0, 7, pair(9, 0), None)
c.setrlimit(0, pair(9, 9))  c.setpgid(0, v)  c.setpgid(v, v)  c.setsid()  c.migrate_pages(v, 8, handle, handle)
c.syscall(nr('migrate_pages'), v, 8, handle, handle)  c.syscall(nr('move_pages'), v, 0, None, None, None, 2)
c.syscall(nr('get_robust_list'), v, handle, handle)  c.syscall(nr('membarrier'), 1, 0, 0)
# memory, queues and semaphores that others can open
c.shmget(0x5A5A, 4096, 0o1666)  c.shmget(0, 4096, 0o1666)  c.shmat(m, None, 0)  c.shmctl(m, 0, None)  c.shmctl(m, 2, b'0' * 256)
c.semget(0x5A5A, 1, 0o1666)  c.semop(a, b'0' * 6, 1)  c.semctl(a, 0, 0)  c.semctl(a, 0, 16, 7)  c.msgget(0x5A5A, 0o1666)
c.msgsnd(q, b'1' * 16, 4, 0)  c.msgrcv(q, b'1' * 64, 4, 0, 0)  c.msgctl(q, 0, None)  c.mq_open(b'/x', 0o102, 0o666, None)
c.mq_unlink(b'/x')  c.syscall(nr('mq_notify'), r, event(0, v))  c.syscall(nr('mq_timedsend'), r, b'x', 1, 0, None)
c.syscall(nr('memfd_create'), b'x', 0)  c.syscall(nr('memfd_secret'), 0)  c.syscall(nr('add_key'), b'user', b'x', b'x', 1, -3)
c.syscall(nr('request_key'), b'user', b'x', None, -3)  c.syscall(nr('keyctl'), 0, -3, 1)
# sockets
c.socket(1, 1, 0)  c.socket(2, 1, 0)  c.socket(2, 2, 0)  c.socket(10, 1, 0)  c.socket(16, 3, 9)  c.socket(17, 3, 0)  c.socket(38, 5, 0)
c.socket(40, 1, 0)  c.socketpair(1, 1, 0, handle)  c.connect(r, b'0' * 16, 16)  c.bind(r, b'0' * 16, 16)  c.sendto(r, b'x', 1, 0, None, 0)
c.sendmsg(r, b'0' * 64, 0)  c.recvmsg(r, b'0' * 64, 0)  c.listen(r, 1)  c.accept(r, None, None)
# files
c.open(p, 1)  c.open(p, 0o102, 0o666)  c.open(p, 0o1000)  c.open(p, 0o20200000 | 2, 0o600)  c.open(p, 0)  c.creat(p, 0o666)  c.unlink(p)
c.rename(p, p + b'x')  c.link(p, p + b'x')  c.symlink(p, p + b'x')  c.mkdir(p + b'x', 0o777)  c.mknod(p + b'x', 0o10666, 0)
c.mkfifo(p + b'x', 0o666)  c.rmdir(os.path.dirname(p))  c.chmod(p, 0)  c.chown(p, 1, 1)  c.lchown(p, 1, 1)  c.truncate(p, 0)
c.utimes(p, None)  c.setxattr(p, b'user.x', b'1', 1, 0)  c.removexattr(p, b'user.x')  c.flock(s, 2)  c.flock(s, 5)
c.fcntl(s, 6, lock)  c.fcntl(s, 7, lock)  c.fcntl(s, 37, lock)  c.fcntl(s, 38, lock)  c.fcntl(r, 1033, 1)  c.fcntl(r, 1031, 1 << 20)
c.fcntl(s, 1036, handle)  c.fsync(s)  c.fdatasync(s)  c.syncfs(s)  c.syscall(nr('sync'))  c.ftruncate(s, 0)  c.fallocate(s, 0, 0, 1)
c.sendfile(w, s, None, 1)  c.splice(r, None, w, None, 1, 2)  c.tee(r, w, 1, 2)  c.vmsplice(w, vector, 1, 0)
c.copy_file_range(s, None, w, None, 1, 0)  c.inotify_init()  c.inotify_init1(0)  c.fanotify_init(0, 0)  c.name_to_handle_at(-100, p, handle, handle, 0)
c.open_by_handle_at(s, handle, 0)  c.syscall(nr('openat2'), -100, p, handle, 24)  c.chroot(b'/')  c.mount(b'none', b'/tmp', b'tmpfs', 0, None)
c.umount2(b'/tmp', 2)  c.pivot_root(b'/', b'/')  c.syscall(nr('open_tree'), -100, b'/', 1)  c.syscall(nr('fsopen'), b'tmpfs', 0)
c.syscall(nr('move_mount'), -100, b'/', -100, b'/', 0)  c.swapon(p, 0)  c.acct(p)  c.quotactl(0, b'/', 0, handle)
# programs, and large pieces of kernel
c.syscall(nr('fork'))  c.syscall(nr('vfork'))  c.syscall(nr('clone'), 17, None, None, None, None)  c.syscall(nr('clone'), 0x18F00, None, None, None, None)
c.syscall(nr('clone'), 0x50010F00, None, None, None, None)  c.syscall(nr('clone'), 0x8F00, None, None, None, None)  c.syscall(nr('clone3'), b'0' * 88, 88)
c.execve(b'/bin/true', words, words)  c.syscall(nr('execveat'), -100, b'/bin/true', words, words, 0)  c.unshare(0x10000000)  c.unshare(0)
c.setns(s, 0)  c.syscall(nr('bpf'), 0, handle, 48)  c.syscall(nr('perf_event_open'), b'0' * 128, v, -1, -1, 0)  c.syscall(nr('userfaultfd'), 1)
c.syscall(nr('io_uring_setup'), 4, b'0' * 128)  c.syscall(nr('io_setup'), 4, handle)  c.personality(0x0040000)  c.klogctl(3, handle, 8)
c.syscall(nr('seccomp'), 1, 8, handle)  c.syscall(444, None, 0, 1)  c.syscall(446, r, 0)  c.syscall(nr('capset'), handle, handle)
c.sethostname(b'x', 1)  c.setdomainname(b'x', 1)  c.clock_settime(0, pair(0, 0))  c.settimeofday(pair(0, 0), None)  c.adjtimex(b'0' * 256)
c.reboot(0)  c.vhangup()  c.syscall(nr('init_module'), handle, 8, b'')  c.syscall(nr('kexec_load'), 0, 0, None, 0)  c.mlockall(1)
c.setuid(1)  c.setgid(1)  c.setresuid(1, 1, 1)  c.setgroups(0, None)  c.syscall(9999)  c.syscall(0x40000000 + 39)  c.syscall(463, 0, 0, 0)
"""
ATTEMPTS = [part for line in ESCAPES.splitlines() if line[:1] == "c" for part in line.split("  ")]

NUMBERS = {  # name: (x86-64, arm64), of linux/unistd.h
    "fcntl": (72, 25), "ioctl": (16, 29), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239), "get_robust_list": (274, 100),
    "membarrier": (324, 283), "mq_notify": (244, 184), "mq_timedsend": (242, 182), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "sync": (162, 81),
    "openat2": (437, 437), "open_tree": (428, 428), "fsopen": (430, 430), "move_mount": (429, 429), "fork": (57, 9999),
    "vfork": (58, 9999), "clone": (56, 220), "clone3": (435, 435), "execveat": (322, 281), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_setup": (206, 0),
    "seccomp": (317, 277), "capset": (126, 91), "init_module": (175, 105), "kexec_load": (246, 104),
}  # fmt: skip
COLUMN = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine, 0)


class Outside:
    """The goals of a way out: a process, a file, and memory, a queue and a semaphore of System V."""

    def __init__(self, folder: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        while "SigCgt:\t0000000000000000" not in Path(f"/proc/{self.process.pid}/status").read_text():
            time.sleep(0.01)  # until the handlers of its parent are gone
        self.file = folder / "outside.txt"
        self.file.write_text("outside")
        self.memory = self.libc.shmget(0, 4096, 0o1666)
        self.queue = self.libc.msgget(0, 0o1666)
        self.semaphore = self.libc.semget(0, 1, 0o1666)

    def state(self) -> list[object]:
        """Nothing of it may change. SigQ is left out: the kernel counts it per user."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kept = re.findall(r"^(Sig(?!Q)\w+|Cpus_allowed|NSpid|Uid|Seccomp|TracerPid):\s*(.*)$", status, re.M)
        limits = Path(f"/proc/{self.process.pid}/limits").read_text()
        counts = [self.libc.semctl(self.semaphore, 0, 12), os.getpriority(os.PRIO_PROCESS, self.process.pid)]
        stats = [(entry.name, entry.stat()) for entry in os.scandir(self.file.parent)]
        files = [(name, s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns, s.st_nlink) for name, s in stats]
        ipc = [
            [line for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines() if line.split()[1] == str(number)]
            for kind, number in (("shm", self.memory), ("msg", self.queue), ("sem", self.semaphore))
        ]
        return [kept, limits, counts, files, self.file.read_bytes(), ipc, os.uname().nodename]

    def close(self) -> None:
        self.libc.shmctl(self.memory, 0, None)
        self.libc.msgctl(self.queue, 0, None)
        self.libc.semctl(self.semaphore, 0, 0)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    world = Outside(tmp_path)
    yield world
    world.close()


def test_no_way_out_reaches_anything(outside: Outside) -> None:
    assert len(ATTEMPTS) >= 200
    before = outside.state()
    names = {"v": outside.process.pid, "p": str(outside.file).encode(), "m": outside.memory, "q": outside.queue}
    code = f"""
import ctypes, os, struct
c = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
os.write(w, b"x" * 100)
s = os.open(os.__file__, os.O_RDONLY)
d = os.open(os.path.dirname(os.__file__), os.O_RDONLY)
numbers = {NUMBERS!r}
names = {{**{names!r}, "a": {outside.semaphore}, "c": c, "r": r, "w": w, "s": s, "d": d, "os": os,
    "nr": lambda name: numbers[name][{COLUMN}], "long": ctypes.c_long, "pair": lambda x, y: struct.pack("ii", x, y),
    "event": lambda kind, target: ctypes.create_string_buffer(struct.pack("QiiiI", 0, 9, kind, target, 0), 64),
    "handle": ctypes.create_string_buffer(64), "lock": struct.pack("hhqqi", 1, 0, 0, 0, 0) + b"0" * 8,
    "vector": struct.pack("QQ", ctypes.addressof(ctypes.create_string_buffer(8)), 8),
    "words": (ctypes.c_char_p * 1)(None)}}
def attempt(text):
    ctypes.set_errno(0)
    try:
        done = eval(text, names)
    except AttributeError:  # a C library without this function
        return -1, 38
    os.write(w, b"x")
    os.read(r, 1)
    return done, ctypes.get_errno()
"""
    outcome = run_tests(
        code,
        f"reached = []\nfor text in {ATTEMPTS!r}:\n    done, why = attempt(text)\n"
        "    if done != -1 or why not in (1, 13, 38): reached.append((text, done, why))\n"
        "assert attempt('c.getppid()')[0] >= 0\nassert reached == [], reached",
    )
    assert outcome.verdict == "correct", outcome.detail
    assert outside.process.poll() is None
    assert outside.state() == before


def test_system_calls_that_are_not_listed_are_refused() -> None:
    listed = {numbers[COLUMN] for numbers in (confinement._ALLOWED | confinement._CONDITIONAL).values()}
    code = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    return c.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()
"""
    ends_its_process = {335, 336} if COLUMN == 0 else set()  # the kernel's own probes, before any filter is asked
    others = [number for number in range(600) if number not in listed | ends_its_process]
    assert len(others) > 400
    checks = f"for number in {others}:\n    assert call(number) in ((-1, 1), (-1, 38)), number"
    assert run_tests(code, checks).verdict == "correct"


def test_a_signal_by_a_files_owner_kills_neither_grader_nor_judge() -> None:
    """The grader is the parent of both processes, the judge is the parent's other child."""
    code = """
import fcntl, os
def f(x):
    for pid in range(max(os.getpid() - 30, 1), os.getpid() + 30):
        for target in (pid, os.getppid()):
            r, w = os.pipe()
            for command, value in ((fcntl.F_SETOWN, target), (10, 9), (fcntl.F_SETFL, os.O_ASYNC)):
                try: fcntl.fcntl(r, command, value)
                except OSError: pass
            os.write(w, b"x"); os.close(r); os.close(w)
    return x
"""
    assert run_tests(code, "assert f(1) == 2").verdict == "incorrect"
    assert run_tests(code, "assert f(1) == 1").verdict == "correct"


JUDGE_KILLERS = {
    "a forged lack of a sandbox": "import os\nfor d in range(3, 64):\n"
    " try: os.write(d, b'{\"unavailable\": \"x\"}\\n')\n except OSError: pass\ndef f(x): return 0",
    "the same, and an end": "import os\nfor d in range(3, 64):\n"
    " try: os.write(d, b'{\"unavailable\": \"x\"}\\n' * 3)\n except OSError: pass\nos._exit(0)",
    "an end while it loads": "import os\nos._exit(1)",
    "closed pipes": "import os\nos.closerange(3, 64)\ndef f(x): return 0",
    "a closed pipe, later": "import os\ndef f(x): os.closerange(3, 64)",
    "a crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "an iterator without end": "def f(x):\n while True: yield 1",
    "an object without end": "class A:\n def __getitem__(self, i): return i\n def __len__(self): return 10**9\ndef f(x): return A()",
    "a large range": "def f(x): return range(10**17)",
    "texts": "def f(x):\n for i in range(10**6): yield str(i) * 1000",
    "numbers": "def f(x):\n while True: yield 1 << 2_000_000",
    "half a value": "import os\ndef f(x):\n for d in range(3, 64):\n"
    "  try: os.write(d, b'{\"value\": [1')\n  except OSError: pass\n os._exit(0)",
    "no values": "import os\ndef f(x):\n for d in range(3, 64):\n"
    "  try: os.write(d, b'[]\\n7\\n{}\\n')\n  except OSError: pass",
    "values of equal hash": "import os\nline = b'{\"value\": {\"set\": [' + b','.join(b'{\"int\": \"%x\"}' % (i * (2**61 - 1)) "
    "for i in range(20000)) + b']}, \"arguments\": []}\\n'\ndef f(x):\n for d in range(3, 64):\n"
    "  try: os.write(d, line)\n  except OSError: pass\n os._exit(0)",
    "an exception without end": "class E(Exception):\n def __str__(self): return 'x' * 10**8\ndef f(x): raise E",
    "a keyboard interrupt": "def f(x): raise KeyboardInterrupt",
    "an exit of a generator": "def f(x): raise GeneratorExit",
    "no memory": "def f(x): raise MemoryError",
    "too deep": "def f(x): raise RecursionError",
    "a system exit with a verdict": "def f(x): raise SystemExit('correct')",
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGE_KILLERS)
def test_a_judge_that_ends_is_no_way_out_of_a_verdict(name: str) -> None:
    tests = "value = f(1)\nassert sum(value if hasattr(value, '__iter__') else [value]) == 8157"
    outcome = run_tests(JUDGE_KILLERS[name], tests, Limits(cpu_seconds=1, wall_seconds=1.5))
    assert outcome.verdict == "incorrect", outcome


@pytest.mark.slow
def test_honest_programs_keep_what_they_need() -> None:
    """The standard library at work: files of its own, threads, timers, pipes, memory, clocks, questions to the system."""
    rows = [json.loads(line) for line in Path(__file__).with_name("honest_programs.jsonl").read_text().splitlines()]
    assert len(rows) > 80
    for start in range(0, len(rows), 15):
        programs = {row["name"]: row["code"] for row in rows[start : start + 15]}
        code = (
            f"import linecache\nprograms = {programs!r}\ndef run(name):\n    space = {{'__name__': 'solution'}}\n"
            "    linecache.cache[name] = (1, None, programs[name].splitlines(keepends=True), name)\n"
            "    exec(compile(programs[name], name, 'exec'), space)\n    return bool(space['f']())"
        )
        checks = f"for name in {list(programs)!r}:\n    assert run(name), name"
        outcome = run_tests(code, checks, Limits(cpu_seconds=30, wall_seconds=60.0))
        assert outcome.verdict == "correct", outcome.detail


def test_the_end_of_the_tests_own_program_is_undecided() -> None:
    assert run_tests("f = 1", "import os\nos._exit(0)").verdict == "undecided"
    assert run_tests("f = 1", "import ctypes\nctypes.string_at(0)").verdict == "undecided"


def test_landlock_stops_signals_where_no_filter_does(outside: Outside) -> None:
    """The second layer alone: a process in the Landlock domain, without the filter of system calls."""
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 6:
        pytest.skip("Landlock of this kernel knows no signals")
    program = f"""
import fcntl, os, sys, time
sys.path.insert(0, {str(Path(confinement.__file__).parent)!r})
import confinement
confinement._libc.prctl(38, 1, 0, 0, 0)
confinement._restrict_files()
r, w = os.pipe()
try: os.kill({outside.process.pid}, 9)
except PermissionError: print("refused")
fcntl.fcntl(r, fcntl.F_SETOWN, {outside.process.pid}); fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
os.write(w, b"x")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    os.kill(outside.process.pid, signal.SIGCONT)
    assert outside.process.poll() is None
