"""Give up, for good, what a program that only computes does not need. Linux on x86-64 and arm64; standard library only.

Four layers, each of the kernel's own and none that needs root:

* resource limits: CPU time, address space, file size, open files, no core dumps;
* no capabilities and no way to gain any (``PR_SET_NO_NEW_PRIVS``);
* Landlock: files can be read below the folders of the Python installation and nowhere else, and written nowhere;
* a seccomp filter: no new processes, no other program, no sockets, no signals, no looking into other processes, no new
  limits, no change of any file's metadata, nothing that outlives the process.

It is no boundary against somebody with an unknown hole in the kernel: every other system call stays open. Code that
is written to break out, rather than to fool a grader, belongs into a virtual machine.

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


_REFUSED = _calls("""
    # new processes and programs; a thread is let through below
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
    # files: what Landlock leaves open
    openat2 437 437, name_to_handle_at 303 264, open_by_handle_at 304 265, creat 85 -, truncate 76 45, chmod 90 -,
    fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
    utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
    removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
""")
"""Refused system calls."""
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_OPEN, _OPENAT = (2, None), (257, 56)
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_READ = 0b1101  # execute (shared libraries), read a file, read a folder
_LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""ABI -> number of access rights to files that it knows; the first so many bits."""

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
    """Landlock (Linux 5.13): reading below the Python installation and the system's libraries only."""
    abi = _check(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = (1 << _LANDLOCK_RIGHTS.get(abi, 16)) - 1
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", rights), 8, 0), "a Landlock ruleset")
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
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if column == 0:  # the same calls under other numbers
        lines += [(_ATLEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for call, argument, bits, refused_if_set in (
        (_CLONE[column], 0, _CLONE_THREAD, False),
        (_OPEN[column], 1, _WRITING, True),
        (_OPENAT[column], 2, _WRITING, True),
    ):
        if call is not None:
            lines += [
                (_EQUAL, 0, 4, call),
                (_LOAD, 0, 0, 16 + 8 * argument),
                (_ANY_BIT, 0 if refused_if_set else 1, 1 if refused_if_set else 0, bits),
                (_RETURN, 0, 0, _EPERM),
                (_RETURN, 0, 0, _ALLOW),
            ]
    lines += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ENOSYS)]  # the C library then uses clone
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            lines += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]
