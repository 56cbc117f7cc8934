"""Not a test: a child that is stopped at its system calls, and killed before one of them (Linux on x86-64).

Python's own calls into C are too coarse for SQLite, which makes a dozen system calls in one of them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from functools import cache

_TRACEME, _PEEKUSER, _KILL, _SYSCALL, _SETOPTIONS = 0, 3, 8, 24, 0x4200
_SYSGOOD, _EXITKILL = 1, 1 << 20
_ORIG_RAX, _RDI, _RSI, _RDX = 8 * 15, 8 * 14, 8 * 13, 8 * 12

# What changes the disk, or takes a lock on it, by its number on x86-64.
_ALWAYS = {
    73: "flock", 74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir",
    84: "rmdir", 86: "link", 87: "unlink", 88: "symlink", 258: "mkdirat", 263: "unlinkat", 264: "renameat",
    265: "linkat", 316: "renameat2",
}  # fmt: skip
_TO_A_FILE = {1: "write", 18: "pwrite64", 20: "writev"}  # where the descriptor is none of the first three
_LOOKS = {
    2: "open", 4: "stat", 6: "lstat", 21: "access", 72: "fcntl", 217: "getdents64", 257: "openat",
    262: "newfstatat", 269: "faccessat", 332: "statx", 439: "faccessat2",
}  # fmt: skip
_OPEN, _OPENAT, _WRITES = 2, 257, os.O_WRONLY | os.O_RDWR | os.O_CREAT


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    return libc


def _ptrace(request: int, pid: int = 0, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    result = _libc().ptrace(request, pid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def offer() -> None:
    """In the child: let the parent trace what comes from here on."""
    _ptrace(_TRACEME)
    os.kill(os.getpid(), signal.SIGSTOP)


def follow(pid: int, last: int | None) -> int:
    """In the parent: let a child that offered itself run, and kill it before its touch number ``last``.

    Returns:
        How many calls that touch the disk it made; the child has ended.
    """
    count, entering = 0, True
    os.waitpid(pid, 0)
    follow_calls(pid)
    while go_on(pid):
        if entering and touches(pid):
            if count == last:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return count
            count += 1
        entering = not entering
    return count


def follow_calls(pid: int) -> None:
    """In the parent: a child that offered itself, and has stopped, stops at its calls from here on."""
    _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _EXITKILL)


def go_on(pid: int) -> bool:
    """Let a child go on to the beginning or the end of its next call; False if it has ended."""
    pending = 0
    while True:
        _ptrace(_SYSCALL, pid, 0, pending)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return False
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            return True
        pending = os.WSTOPSIG(status)


def call_of(pid: int) -> tuple[int, int, int]:
    """The number of a child's call and its first two arguments."""
    number, first, second = (_ptrace(_PEEKUSER, pid, register) for register in (_ORIG_RAX, _RDI, _RSI))
    return number, first, second


def number_of(pid: int) -> int:
    """The number of a child's call."""
    return _ptrace(_PEEKUSER, pid, _ORIG_RAX)


def looks(pid: int) -> bool:
    """Whether a child's call looks at what is on the disk, or at a lock."""
    return number_of(pid) in _LOOKS


def touches(pid: int) -> bool:
    """Whether a child's call changes what is on the disk, or takes a lock."""
    number = number_of(pid)
    if number in _TO_A_FILE:
        return _ptrace(_PEEKUSER, pid, _RDI) > 2
    if number in (_OPEN, _OPENAT):
        return bool(_ptrace(_PEEKUSER, pid, _RSI if number == _OPEN else _RDX) & _WRITES)
    return number in _ALWAYS


def works() -> bool:
    """Whether children can be traced here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    pid = os.fork()
    if pid == 0:
        try:
            offer()
            os.rmdir("/nowhere/at/all")
        finally:
            os._exit(0)
    try:
        return follow(pid, None) == 1
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False
