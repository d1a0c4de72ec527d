"""Keep a process that was declared dead from coming back: SIGKILL, by pid AND start time, never to another process."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from mlbot_core.execution.safety import Heartbeat


@dataclass(frozen=True)
class Fenced:
    """What became of one process: whether it was killed, and in words."""

    name: str
    pid: int
    killed: bool
    text: str


def fence(beat: Heartbeat) -> Fenced:
    """Kill the process of a heartbeat, frozen or not, if it is still the one that wrote it.

    The process is held by a handle while its start time is compared, so that the signal cannot reach another one that
    was given the same pid in between. Where the system has no such handles, nothing is killed.
    """

    def result(killed: bool, text: str) -> Fenced:
        return Fenced(beat.name, beat.pid, killed, f"{beat.name} (process {beat.pid}): {text}")

    if beat.pid == os.getpid():
        return result(False, "is this process")
    if not hasattr(os, "pidfd_open"):
        return result(False, "this system cannot name a process for good; not killed, lease and marker hold it back")
    try:
        handle = os.pidfd_open(beat.pid)
    except ProcessLookupError:
        return result(False, "ended already")
    except OSError as error:
        return result(False, f"cannot be reached ({error.strerror}); lease and marker hold it back")
    try:
        if not beat.still_runs():
            return result(False, "ended already; its pid belongs to another process now")
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError as error:
        return result(False, f"could not be killed ({error.strerror}); lease and marker hold it back")
    finally:
        os.close(handle)
    return result(True, "killed: it must not send anything any more")
