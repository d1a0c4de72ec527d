"""A shared/exclusive lock between processes that is fair, bounded and forgets the dead.

DuckDB allows one writing process or many reading ones, and fails at once instead of queueing. So every visit to the
store is bracketed by ``flock`` on ``<path>.lock``, which the kernel drops when a process dies. ``flock`` alone is not
fair: a waiter that is woken races every newcomer and goes to the end when it loses; under load that was measured to
starve a writer for seconds. Therefore all comers, readers and writers, first queue on ``<path>.queue``: each takes a
number, locks the byte of that number, and waits for the byte of the number before. When the predecessor has got the
main lock (or died, or given up) its byte is free and the next one goes on to wait for the main lock, alone. The queue
gives only the order; safety rests on the main lock, so a death in the queue can cost order but never exclusion.

Byte locks are of the open-file-description kind (Linux): they belong to the open file, not to the process, so threads
exclude one another too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlbot_core.errors import LockTimeoutError

_COUNTER_BYTES = 8
_FIRST_TICKET_BYTE = 64


class FileLock:
    """Shared/exclusive lock over two files beside the thing they protect.

    Parameters
    ----------
    path
        What is protected; ``<path>.lock`` and ``<path>.queue`` are created beside it.
    timeout_s
        Longest wait for the lock, in seconds.
    """

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self._path = path
        self._main = path.with_name(path.name + ".lock")
        self._queue = path.with_name(path.name + ".queue")
        self._timeout_s = timeout_s

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone.

        Raises
        ------
        LockTimeoutError
            If others held it longer than the timeout.
        """
        main = self._acquire(fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(main)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other readers.

        Raises
        ------
        LockTimeoutError
            If a writer held it longer than the timeout.
        """
        main = self._acquire(fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(main)

    def _acquire(self, mode: int) -> int:
        deadline = time.monotonic() + self._timeout_s
        queue = _open(self._queue)
        try:
            ticket = self._take_number(queue, deadline)
            self._obtain(queue, lambda fd, wait: _lock_byte(fd, ticket - 1, wait=wait), deadline)
            main = _open(self._main)
            try:
                self._obtain(main, lambda fd, wait: fcntl.flock(fd, mode | (0 if wait else fcntl.LOCK_NB)), deadline)
            except _Abandoned:
                raise
            except BaseException:
                os.close(main)
                raise
        except _Abandoned as abandoned:
            if abandoned.fd != queue:
                os.close(queue)
            raise LockTimeoutError(
                f"{self._path} was held by other processes for more than {self._timeout_s:g} s; "
                "look for a stuck mlbot process (mlbot status) and try again"
            ) from None
        except BaseException:
            os.close(queue)
            raise
        os.close(queue)
        return main

    def _take_number(self, queue: int, deadline: float) -> int:
        """Draw the next number and lock its byte, in one step for everybody else."""
        self._obtain(queue, lambda fd, wait: _lock_byte(fd, -_FIRST_TICKET_BYTE, wait=wait), deadline)
        raw = os.pread(queue, _COUNTER_BYTES, 0)
        ticket = 1 + (int.from_bytes(raw, "little") if len(raw) == _COUNTER_BYTES else 0)
        _lock_byte(queue, ticket, wait=False)
        os.pwrite(queue, ticket.to_bytes(_COUNTER_BYTES, "little"), 0)
        _lock_byte(queue, -_FIRST_TICKET_BYTE, wait=False, release=True)
        return ticket

    def _obtain(self, fd: int, take: Callable[[int, bool], None], deadline: float) -> None:
        """Take a lock at once, or wait for it in the kernel with the bound that the kernel does not offer."""
        try:
            take(fd, False)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return
        waiter = _Waiter(fd, take)
        waiter.start()
        waiter.join(max(0.0, deadline - time.monotonic()))
        if waiter.abandon():
            raise _Abandoned(fd)
        if waiter.error is not None:
            raise waiter.error


class _Abandoned(Exception):
    """The wait ended; the waiting thread now owns the descriptor and closes it when the kernel lets it go."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.fd = fd


class _Waiter(threading.Thread):
    """One blocking lock call; when nobody waits for its result any more it gives the lock straight back."""

    def __init__(self, fd: int, take: Callable[[int, bool], None]) -> None:
        super().__init__(daemon=True, name="mlbot-lock")
        self._fd = fd
        self._take = take
        self._guard = threading.Lock()
        self._done = False
        self._abandoned = False
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self._take(self._fd, True)
        except OSError as error:
            self.error = error
        with self._guard:
            self._done = True
            if self._abandoned:
                os.close(self._fd)

    def abandon(self) -> bool:
        """Give up waiting; False if the lock (or an error) arrived first."""
        with self._guard:
            if self._done:
                return False
            self._abandoned = True
            return True


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock_byte(fd: int, number: int, *, wait: bool, release: bool = False) -> None:
    kind = fcntl.F_UNLCK if release else fcntl.F_WRLCK
    # struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for this kind of lock)
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, _FIRST_TICKET_BYTE + number, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
