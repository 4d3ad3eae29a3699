"""Give up, for good, what a program that only computes does not need. Linux on x86-64 and arm64; standard library only.

Four layers, each of the kernel's own and none that needs root:

* resource limits: CPU time, address space, file size, open files, no core dumps;
* no capabilities and no way to gain any (``PR_SET_NO_NEW_PRIVS``);
* Landlock: files can be read below the folders of the Python installation and nowhere else, and written nowhere; no TCP
  (Linux 6.7), no signal and no abstract socket to a process outside (Linux 6.12);
* a seccomp filter: the system calls that computing takes are listed, and no other is let through. So there are no new
  processes, no other program, no sockets, no signals by any way, no shared memory, no locks on files, no looking into
  other processes, no new limits, and nothing that outlives the process.

Names, sizes and dates of files can be seen: the kernel has no way to hide them without root. It is no boundary against
somebody with an unknown hole in the kernel: code that is written to break out, rather than to fool a grader, belongs
into a virtual machine.

This file is run by the child processes outside the package and must not import from it.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig


def _calls(table: str) -> dict:
    """Name -> numbers of a system call on (x86-64, arm64) from "name x86-64 arm64, ..."; "-" is None."""
    lines = (line for line in table.splitlines() if not line.strip().startswith("#"))
    rows = (entry.split() for entry in "".join(lines).split(","))
    return {name: tuple(None if number == "-" else int(number) for number in numbers) for name, *numbers in rows}


_ALLOWED = _calls("""
    # open files; Landlock has a say in which can be opened, made or removed
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24,
    pipe 22 -, pipe2 293 59, fadvise64 221 223, getdents 78 -, getdents64 217 61, fstat 5 80, fstatfs 138 44,
    poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
    timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87,
    # names
    stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439,
    readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50, statfs 137 43, umask 95 166,
    mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
    renameat2 316 276,
    # memory and threads of its own
    mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, msync 26 227, brk 12 214, futex 202 98,
    set_robust_list 273 99, rseq 334 293, set_tid_address 218 96, sched_yield 24 124, exit 60 93, exit_group 231 94,
    # signals and timers of its own
    rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
    rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128, pause 34 -, alarm 37 -, getitimer 36 102,
    setitimer 38 103, nanosleep 35 101, clock_nanosleep 230 115, wait4 61 260, waitid 247 95,
    # questions
    clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165,
    getrlimit 97 163, getrandom 318 278, sysinfo 99 179, uname 63 160, getcpu 309 168, getpid 39 172, getppid 110 173,
    gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
    getresgid 120 150, getgroups 115 158, getpgid 121 155, getpgrp 111 -, getsid 124 156, getpriority 140 141,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
    sched_get_priority_min 147 126
""")
"""System calls that are let through whatever their arguments."""
_CONDITIONAL = _calls("open 2 -, openat 257 56, clone 56 220, fcntl 72 25, ioctl 16 29")
_NEWEST = 452
"""Later calls, and clone3, are "not implemented": the C library then uses an older one."""
_CLONE3 = 435
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD, _OF_A_THREAD = 0x00010000, 0x007D0F00
_DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 1030, 1032)
"""Of fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ; F_SETFL but for O_ASYNC."""
_F_SETFL, _O_ASYNC = 4, 0x2000
_DEVICE_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Of ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_READ = 0b1101  # execute (shared libraries), read a file, read a folder
_LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""ABI -> number of access rights to files that it knows; the first so many bits."""
_LANDLOCK_TCP, _LANDLOCK_SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):  # noqa: N818 - a state of the machine
    """This machine cannot confine a program; the reason is for the user."""


def confine(*, cpu_seconds: int, memory_bytes: int) -> None:
    """Confine this process. Nothing undoes it.

    Args:
        cpu_seconds: CPU time of the process from its start.
        memory_bytes: address space.

    Raises:
        Unavailable: the system lacks a layer; some may be in force already, so the process should end.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        raise Unavailable(f"it needs Linux on x86-64 or arm64, and this is {sys.platform} on {platform.machine()}")
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The soft limit on CPU time says why a process ended, the hard one cannot be ignored.
        spare = 1 if limit == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(limit, (value, value + spare))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _drop_capabilities()
    _restrict_files()
    _filter_system_calls()


def _check(result: int, what: str) -> int:
    if result < 0:
        raise Unavailable(f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)), "capset")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _restrict_files() -> None:
    """Landlock (Linux 5.13): reading is left below Python's and the system's libraries, no process can be reached."""
    abi = _check(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = (1 << _LANDLOCK_RIGHTS.get(abi, 16)) - 1
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("QQQ", rights, _LANDLOCK_TCP, _LANDLOCK_SCOPES)[:size]
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "a Landlock ruleset")
    for folder in _readable():
        try:
            handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("=Qi", _LANDLOCK_READ if os.path.isdir(folder) else 0b0101, handle)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), "a Landlock rule")
        os.close(handle)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "to enforce Landlock")
    os.close(ruleset)


def _readable() -> list[str]:
    paths = sysconfig.get_paths()
    return [
        *{paths["stdlib"], paths["platstdlib"], os.path.join(sys.base_prefix, "lib")},
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# System calls: a classic BPF program (linux/filter.h) over struct seccomp_data

_LOAD, _EQUAL, _ATLEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _filter_system_calls() -> None:
    program = _program(*_ARCHITECTURES[platform.machine()])
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, pointer, 0, 0), "a seccomp filter")


def _program(column: int, architecture: int) -> list[tuple[int, int, int, int]]:
    """Lines (operation, skip if true, skip if false, operand). Every case ends in a return, so no jump is long."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)
    first, second, third = ((_LOAD, 0, 0, 16 + 8 * argument) for argument in range(3))  # their lower 32 bits

    def one_of(values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        return [line for value in values for line in ((_EQUAL, 0, 1, value), allow)]

    def none_of(bits: int) -> list[tuple[int, int, int, int]]:
        return [(_ANY_BIT, 0, 1, bits), refuse]

    cases = {
        "open": [second, *none_of(_WRITING), allow],
        "openat": [third, *none_of(_WRITING), allow],
        "clone": [first, *none_of(0xFFFFFFFF & ~_OF_A_THREAD), (_ANY_BIT, 0, 1, _THREAD), allow, refuse],
        "fcntl": [
            *(second, *one_of(_DESCRIPTOR_COMMANDS), (_EQUAL, 1, 0, _F_SETFL), refuse),
            *(third, *none_of(_O_ASYNC), allow),
        ],
        "ioctl": [second, *one_of(_DEVICE_COMMANDS), refuse],
    }
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += one_of(tuple(numbers[column] for numbers in _ALLOWED.values() if numbers[column] is not None))
    for name, case in cases.items():
        if (number := _CONDITIONAL[name][column]) is not None:
            lines += [(_EQUAL, 0, len(case), number), *case]
    missing = (_RETURN, 0, 0, _ENOSYS)
    return [*lines, (_EQUAL, 0, 1, _CLONE3), missing, (_ATLEAST, 0, 1, _NEWEST + 1), missing, refuse]
