"""Halt marker and heartbeats: what must work when nothing else does. Files, no lock anywhere.

Everything of one account lies in one folder:

======================  ================================================================================
file                    meaning
======================  ================================================================================
``HALTED``              no order that opens or adds may be sent; survives a loss of power; the first stays
``halts/<time>-*.json`` markers that were cleared, with who cleared them and why
``beat-<name>.json``    the newest sign of life of a process; replaced whole, not synced to the disk
======================  ================================================================================

What cannot be read counts as the safe thing: a marker as a halt, a heartbeat as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mlbot_core.clock import Clock, SystemClock, format_utc
from mlbot_core.errors import UsageError
from mlbot_core.execution.lease import Lease, Permit, boot_seconds

__all__ = [
    "Halt",
    "Heartbeat",
    "Lease",
    "Permit",
    "SafetyFiles",
    "boot_id",
    "boot_seconds",
    "folder_of",
    "process_started",
]

MARKER: Final = "HALTED"
_CLEARED: Final = "halts"
_NAME: Final = re.compile(r"[a-z0-9-]{1,40}")
_LONGEST_TEXT: Final = 1_000


@dataclass(frozen=True)
class Halt:
    """Who halted trading, why and when (UTC ms; 0 where the marker does not tell).

    With ``keep_position`` no order that opens or adds is sent, but what is held stays: the risk level does not rise.
    """

    actor: str
    reason: str
    at_ms: int
    keep_position: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life.

    Parameters
    ----------
    name, account
        Of what, and for which account.
    counter
        Rises with every beat.
    pid, started, boot
        The process, its start (clock ticks since boot, None where the system does not tell) and which boot that was:
        together they name a process for good, where a pid alone is used again.
    at_ms
        UTC ms of the writer's clock.
    farewell
        The process ended on purpose and leaves nothing that needs watching.
    facts
        What the writer adds, plain JSON.
    """

    name: str
    account: str
    counter: int
    pid: int
    started: int | None
    boot: str
    at_ms: int
    farewell: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, int, int | None, int]:
        """Another one is another beat."""
        return (self.boot, self.pid, self.started, self.counter)

    def still_runs(self) -> bool:
        """Whether the process that wrote it exists, frozen or not."""
        return self.started is not None and self.boot == boot_id() and process_started(self.pid) == self.started


def process_started(pid: int) -> int | None:
    """Return when a process started, clock ticks since boot; None if there is none or ``/proc`` does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the second field is the program's name in brackets and may hold anything
    rest = stat.rpartition(")")[2].split()
    if len(rest) < 20 or rest[0] in ("Z", "X"):
        return None
    return int(rest[19])


def boot_id() -> str:
    """Return the name of this boot of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def folder_of(live_dir: Path, account: str) -> Path:
    """Return the folder of an account in ``settings.live_dir``: ``testnet:1`` lies in ``testnet_1``.

    Raises
    ------
    UsageError
        If the account's name is not one that a folder can have.
    """
    name = account.replace(":", "_")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or set(name) <= {"."}:
        raise UsageError(f"account {account!r} must be a name like testnet:1234")
    return live_dir / name


class SafetyFiles:
    """Marker and heartbeats of one account.

    Parameters
    ----------
    folder
        Of the account (:func:`folder_of`); made when something is written.
    account
        For example ``testnet:1234``.
    clock
        Dates beats and cleared markers.
    """

    def __init__(self, folder: Path, account: str, clock: Clock | None = None) -> None:
        self.folder = folder
        self.account = account
        self._clock: Clock = SystemClock() if clock is None else clock
        self._marker = folder / MARKER
        self._counters: dict[str, int] = {}

    @classmethod
    def of(cls, live_dir: Path, account: str, clock: Clock | None = None) -> SafetyFiles:
        """Return those of an account in ``settings.live_dir``.

        Raises
        ------
        UsageError
            If the account's name is not one that a folder can have.
        """
        return cls(folder_of(live_dir, account), account, clock)

    # --- halt

    def halt(self, actor: str, reason: str, now_ms: int, *, keep_position: bool = False) -> Halt:
        """Make sure that the marker stands, on the disk, and return the halt that does: the first one stays.

        Only one that keeps the position gives way to one that does not.

        Raises
        ------
        OSError
            If not even an empty marker can be made; nothing then forbids to send.
        """
        made = Halt(actor[:_LONGEST_TEXT], reason[:_LONGEST_TEXT], int(now_ms), keep_position)
        before = self.halted()
        try:
            self._make(made, replaces=before is not None and before.keep_position and not keep_position)
        except OSError:
            # no room for its text: an empty marker halts as well
            self._make_empty()
        standing = self.halted()
        return made if standing is None else standing

    def halted(self) -> Halt | None:
        """Return the halt that stands, None if there is none; never raises, and what cannot be read is a halt."""
        try:
            os.lstat(self._marker)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unreadable(error)
        try:
            read = json.loads(self._marker.read_bytes())
            kept = read["keep_position"] is True
            return Halt(str(read["actor"]), str(read["reason"]), int(read["at_ms"]), kept)
        except FileNotFoundError:
            # cleared in between, or a link into nowhere
            return None if not os.path.lexists(self._marker) else _unreadable(None)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            return _unreadable(error)

    def killed(self) -> Halt | None:
        """Return the halt that stands if what is held is to be closed; None else. Never raises."""
        halt = self.halted()
        return None if halt is None or halt.keep_position else halt

    def clear_halt(self, actor: str, reason: str) -> bool:
        """Take the marker away and keep it with who cleared it and why; return whether there was one.

        Raises
        ------
        OSError
            If it cannot be taken away or the record cannot be written; it stands then.
        """
        if not os.path.lexists(self._marker):
            return False
        folder = self.folder / _CLEARED
        folder.mkdir(exist_ok=True)
        now = self._clock.now_ms()
        stamp = format_utc(now).replace(":", "").replace(".", "-")
        halt = self.halted()
        record = {
            "cleared": {"actor": actor, "reason": reason, "at_ms": now},
            "halt": None if halt is None else halt.__dict__,
        }
        number = 0
        while os.path.lexists(folder / f"{stamp}-{number}-cleared.json"):
            number += 1
        # the record first: a marker that is gone without one would be a halt that nobody ended
        self._write_synced(folder / f"{stamp}-{number}-cleared.json", _encoded(record))
        _sync_folder(folder)
        try:
            self._marker.rename(folder / f"{stamp}-{number}-marker.json")
        except FileNotFoundError:
            return False
        _sync_folder(self.folder)
        _sync_folder(folder)
        return True

    def _make(self, halt: Halt, *, replaces: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{MARKER}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self._write_synced(draft, _encoded(halt.__dict__))
            if replaces:
                draft.replace(self._marker)
            else:
                # a link is made whole or not at all, and not over another one
                with contextlib.suppress(FileExistsError):
                    os.link(draft, self._marker)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        _sync_folder(self.folder)

    def _make_empty(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        _sync_folder(self.folder)

    def _write_synced(self, path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    # --- heartbeats

    def beat(self, name: str, **facts: Any) -> None:
        """Write a sign of life of this process, with plain facts about what it saw.

        Raises
        ------
        UsageError
            If the name is not one that a file can have.
        OSError
            If it cannot be written.
        """
        self._beat(name, facts, farewell=False)

    def farewell(self, name: str, **facts: Any) -> None:
        """Write the last sign of life of a process that ends on purpose and leaves nothing to watch.

        Raises
        ------
        UsageError, OSError
            As :meth:`beat`.
        """
        self._beat(name, facts, farewell=True)

    def heartbeat(self, name: str) -> Heartbeat | None:
        """Return the newest sign of life; None if there is none or it cannot be read."""
        try:
            read = json.loads(self._beat_path(name).read_bytes())
            started = read["started"]
            return Heartbeat(
                str(read["name"]),
                str(read["account"]),
                int(read["counter"]),
                int(read["pid"]),
                None if started is None else int(started),
                str(read["boot"]),
                int(read["at_ms"]),
                bool(read["farewell"]),
                dict(read["facts"]),
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _beat(self, name: str, facts: Mapping[str, Any], *, farewell: bool) -> None:
        path = self._beat_path(name)
        if name not in self._counters:
            before = self.heartbeat(name)
            self._counters[name] = 0 if before is None else before.counter
        self._counters[name] += 1
        pid = os.getpid()
        content = {
            "name": name,
            "account": self.account,
            "counter": self._counters[name],
            "pid": pid,
            "started": process_started(pid),
            "boot": boot_id(),
            "at_ms": self._clock.now_ms(),
            "farewell": farewell,
            "facts": dict(facts),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{path.name}-{pid}"
        # a lost heartbeat is what a loss of power is; no sync
        draft.write_bytes(_encoded(content))
        draft.replace(path)

    def _beat_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UsageError(f"heartbeat {name!r} must be named by 1 to 40 of a-z, 0-9 and -")
        return self.folder / f"beat-{name}.json"


def _unreadable(error: Exception | None) -> Halt:
    cause = "" if error is None else f" ({type(error).__name__})"
    return Halt("unknown", f"the halt marker cannot be read{cause}, which counts as a halt", 0)


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
