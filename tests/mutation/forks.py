"""Work done in a process of its own, which is ended with all that it started once it outruns its limits."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1


def adopt() -> None:
    """Become the parent of what descendants leave running, so that it can be ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class Patience:
    """Wall time less the time that a process and its descendants stood in the queue of a busy machine."""

    def __init__(self, leader: int) -> None:
        self.leader, self.started, self.looked = leader, time.monotonic(), 0.0
        self.queued: dict[str, int] = {}

    def waited(self) -> float:
        now = time.monotonic()
        if now - self.looked > 1.0:
            self.looked = now
            self._look(str(self.leader))
        return now - self.started - sum(self.queued.values()) / 1e9

    def _look(self, process: str) -> None:
        for task in Path(f"/proc/{process}/task").glob("*"):
            try:
                self.queued[task.name] = int((task / "schedstat").read_text().split()[1])
                children = (task / "children").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for child in children:
                self._look(child)


def in_fork(work: Any, temporary: Path, wait_s: float, cpu_s: float) -> int | None:
    """Return the exit status of some work done in a fork, or None if it outran its limits."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 3))
            silence = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silence, descriptor)
            status = work()
        finally:
            os._exit(status)
    ended = _watched(child, wait_s)
    _, status = os.waitpid(child, 0)
    _reap()
    if not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return None
    return os.waitstatus_to_exitcode(status)


def in_process(command: list[str], folder: Path, wait_s: float, environment: dict[str, str]) -> int | None:
    """Return the exit status of a command, or None if it outran its limit."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:  # fmt: skip
        ended = _watched(child.pid, wait_s)
        status = child.wait()
        _reap()
    return status if ended else None


def _watched(leader: int, wait_s: float) -> bool:
    """Wait for a process, end its group, and say whether it had ended by itself; its number is still its own then."""
    clock, ended = Patience(leader), None
    while ended is None and clock.waited() < wait_s:
        ended = os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        time.sleep(0.03)
    os.killpg(leader, signal.SIGKILL)
    return ended is not None


def _reap() -> None:
    """End what a mutant's tests left running: such processes became children of this one."""
    for _ in range(100):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)
