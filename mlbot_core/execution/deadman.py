"""The dead-man: closes the position when nobody watches it any more. A process of its own, with a key of its own.

It watches the heartbeat file of the risk watch for change, by its own time awake (a machine that slept, and a moment in
which this process was frozen too, count for nothing: the watch gets its time again). It is armed by the first sign of
life that it sees: a beat that changes, or one whose process exists; an armed one stays armed when it is started again.

=========================================================  ======================================================
it sees                                                    it does
=========================================================  ======================================================
no change for ``deadman_after_s``: the watch was killed,   acts: halt marker, fence, cancel, close, look again
frozen, hangs, cannot write, or its file is gone           for ten minutes, record
beats that say "I have not seen the account for longer     looks with its own key: acts if it sees a position for
than ``stale_after_s``"                                    ``deadman_after_s`` on end; an exchange that answers
                                                           nobody is not cured by acting, the stop there protects
a farewell: the watch was ended on purpose, flat (or was   is disarmed, until the next beat
told to leave the position)
=========================================================  ======================================================

The order of acting is: marker first (no entry passes it), then the frozen processes are killed by pid and start time
(``--no-fence`` leaves that out; their leases ran out), then cancel and close, and only then the book, from a thread
of its own: it may be locked by a process that was stopped inside a transaction.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from mlbot_core.clock import Clock, SystemClock, clock_from_env
from mlbot_core.config import Settings, load_settings
from mlbot_core.config.execution import WatchConfig
from mlbot_core.errors import MlbotError
from mlbot_core.execution.broker import Broker, BrokerError
from mlbot_core.execution.fence import fence
from mlbot_core.execution.flatten import FlattenReport, flatten_now
from mlbot_core.execution.flatten_record import Recorder, leave_report
from mlbot_core.execution.ledger import open_ledger
from mlbot_core.execution.safety import Heartbeat, SafetyFiles, boot_id
from mlbot_core.execution.venues import open_broker
from mlbot_core.execution.watch_process import Teller, stop_on_signals

WATCHED: Final = "risk-watch"
FENCED: Final = ("risk-watch", "trader")
NAME: Final = "dead-man"
GUARD_S: Final = 600.0
GUARD_EVERY_S: Final = 5.0
_PATIENCE_S: Final = 30.0
_BEAT_EVERY_S: Final = 2.0
_REMIND_EVERY_S: Final = 60.0
_TIMEOUT_S: Final = (3.0, 5.0)


class _Records(Protocol):
    """Takes reports that lie in their files into the book, without anybody waiting for it."""

    def start(self) -> None:
        """Begin."""
        ...


class DeadMan:
    """One dead-man; call :meth:`look` a few times a second.

    Parameters
    ----------
    files
        Of the account; the heartbeats of the others and its own lie there.
    broker
        Signs with the dead-man's key.
    symbol
        As the exchange names it.
    clock
        Dates what is written; what is waited for is measured by ``awake``.
    watch
        How patiently.
    stale_after_s
        From when on a watch that says it sees nothing counts as blind, seconds.
    records
        Puts reports into the book.
    fencing
        Whether processes that were declared dead are killed.
    say
        Hears what happens.
    awake
        Seconds; stands still while the machine sleeps.
    guard_s
        How long it looks again after it acted, seconds.
    """

    def __init__(
        self,
        files: SafetyFiles,
        broker: Broker,
        symbol: str,
        clock: Clock,
        watch: WatchConfig,
        *,
        stale_after_s: float,
        records: _Records,
        fencing: bool = True,
        say: Callable[[str], None] | None = None,
        awake: Callable[[], float] = time.monotonic,
        guard_s: float = GUARD_S,
    ) -> None:
        self._files = files
        self._broker = broker
        self._symbol = symbol
        self._clock = clock
        self._watch = watch
        self._stale_after_s = stale_after_s
        self._records = records
        self._fencing = fencing
        self._say: Callable[[str], None] = (lambda _: None) if say is None else say
        self._awake = awake
        self._guard_s = guard_s
        # more than this between two looks means that this process was frozen or starved, as the watch may have been
        self._longest_step_s = max(1.0, watch.deadman_after_s / 8)
        self._looked = awake()
        self._silent_s = 0.0
        self._seeing_s: float | None = None
        self._asked = self._looked
        self._beaten = self._reminded = -1e9
        self._guarding: float | None = None
        self._guard_asked = self._looked
        self._newest = files.heartbeat(WATCHED)
        before = files.heartbeat(NAME)
        kept = before is not None and not before.farewell and before.boot == boot_id() and before.facts.get("armed")
        alive = self._newest is not None and not self._newest.farewell and self._newest.still_runs()
        self.armed = bool(kept) or alive
        self.report: FlattenReport | None = None

    @property
    def guarding(self) -> bool:
        """Whether it acted and goes on looking."""
        return self._guarding is not None

    def introduction(self) -> str:
        """Return what it watches, for people."""
        held = "armed" if self.armed else "not armed until the first sign of life"
        return (
            f"dead-man of {self._files.account}: watches {self._files.folder / f'beat-{WATCHED}.json'}; after "
            f"{self._watch.deadman_after_s:g} s without a beat it halts, cancels and closes {self._symbol}; "
            f"{'kills frozen processes' if self._fencing else 'kills nothing'}; {held}"
        )

    def look(self) -> None:
        """Look once, act where it is due, and beat."""
        now = self._awake()
        step = min(max(0.0, now - self._looked), self._longest_step_s)
        self._looked = now
        self._hear(step)
        if self._guarding is not None:
            self._guard(now)
        elif self.armed and self._silent_s > self._watch.deadman_after_s:
            self._act(f"no sign of life of {WATCHED} for {self._silent_s:.1f} s")
        elif self.armed:
            self._doubt(now)
        elif now - self._reminded >= _REMIND_EVERY_S:
            self._reminded = now
            self._say(f"not armed: no sign of life of {WATCHED} since this process began; nobody watches the position")
        self._beat(now)

    def end(self) -> None:
        """Say farewell: ended on purpose, so that the next one is not armed by this one's state."""
        self._files.farewell(NAME, armed=False, guarding=self.guarding)

    # --- watching

    def _hear(self, step: float) -> None:
        beat = self._files.heartbeat(WATCHED)
        known = None if self._newest is None else self._newest.identity
        if beat is None or beat.account != self._files.account or beat.identity == known:
            self._silent_s += step
            return
        self._newest, self._silent_s = beat, 0.0
        if beat.farewell:
            if self.armed:
                self._say(f"{WATCHED} ended on purpose ({beat.facts.get('why', 'flat')}): disarmed until its next beat")
            self.armed = False
        elif not self.armed and self._guarding is None:
            self.armed = True
            self._say(f"armed by {WATCHED} (process {beat.pid})")

    def _doubt(self, now: float) -> None:
        """Look with the own key when the watch says that it sees nothing."""
        blind_s = _blind_s(self._newest)
        if blind_s <= self._stale_after_s:
            self._seeing_s = None
            return
        if now - self._asked < self._watch.every_s:
            return
        self._asked = now
        try:
            held = self._broker.position(self._symbol).size
        except BrokerError as error:
            self._seeing_s = None
            if now - self._reminded >= _REMIND_EVERY_S:
                self._reminded = now
                self._say(f"{WATCHED} has seen nothing for {blind_s:.0f} s and neither do I ({error}); waiting")
            return
        if not held:
            self._seeing_s = None
            return
        self._seeing_s = now if self._seeing_s is None else self._seeing_s
        if now - self._seeing_s >= self._watch.deadman_after_s:
            self._act(f"{WATCHED} has not seen the account for {blind_s:.0f} s, which I see holding {held}")

    # --- acting

    def _act(self, reason: str) -> None:
        self._say(f"ACTING: {reason}")
        self.armed = False
        try:
            halt = self._files.halt(NAME, reason, self._clock.now_ms())
            self._say(f"halted (by {halt.actor}: {halt.reason})")
        except OSError as error:
            # closing matters more than the marker
            self._say(f"THE HALT MARKER COULD NOT BE WRITTEN ({error}); going on")
        if self._fencing:
            for name in FENCED:
                beat = self._files.heartbeat(name)
                if beat is not None and beat.account == self._files.account:
                    self._say(fence(beat).text)
        self._flatten(reason)
        self._guarding = self._guard_asked = self._awake()

    def _guard(self, now: float) -> None:
        """Look again for a while: something may have been on its way."""
        assert self._guarding is not None
        if self._files.halted() is None:
            self._say("the halt was lifted by a person: no longer looking, not armed until the next beat")
            self._guarding = None
            return
        done = self.report is not None and self.report.done
        if now - self._guarding > self._guard_s and done:
            self._say(f"looked for {self._guard_s:g} s: flat; not armed until the next beat")
            self._guarding = None
            return
        if now - self._guard_asked < GUARD_EVERY_S and done:
            return
        try:
            held, orders = self._broker.position(self._symbol).size, self._broker.open_orders(self._symbol)
        except MlbotError as error:
            self._say(f"could not look again: {error}")
        else:
            if held or orders or not done:
                self._flatten(f"held {held} with {len(orders)} open orders after the dead-man had acted")
        self._guard_asked = self._awake()

    def _flatten(self, reason: str) -> None:
        report = flatten_now(
            self._broker,
            self._symbol,
            self._clock,
            trigger="deadman",
            reason=reason,
            patience_s=_PATIENCE_S,
            tell=self._say,
        )
        self.report = report
        self._say(report.in_words())
        try:
            leave_report(self._files, report)
        except OSError as error:
            self._say(f"the report could not be written ({error}): {report.as_json()}")
        self._records.start()

    def _beat(self, now: float) -> None:
        if now - self._beaten < _BEAT_EVERY_S:
            return
        try:
            self._files.beat(
                NAME,
                armed=self.armed,
                guarding=self.guarding,
                silent_s=round(self._silent_s, 1),
                watched=None if self._newest is None else self._newest.pid,
            )
            self._beaten = now
        except OSError as error:
            self._say(f"its own heartbeat could not be written: {error}")


def _blind_s(beat: Heartbeat | None) -> float:
    """How long the watch says that it has not seen the account, seconds."""
    value = None if beat is None else beat.facts.get("blind_s")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Watch until a signal; return the exit code: 0 after a signal, 1 if it fails, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="python -m mlbot_core.execution.deadman", description=(__doc__ or "")[:120])
    parser.add_argument("--no-fence", action="store_true", help="kill no process that was declared dead")
    parser.add_argument("--after", type=float, help="seconds without a heartbeat; default: watch.deadman_after_s")
    args = parser.parse_args(argv)
    stop = stop_on_signals()
    say = Teller(NAME, SystemClock())
    try:
        settings, clock = load_settings(environ), clock_from_env()
        say = Teller(NAME, clock)
        watch = settings.execution.watch
        if args.after is not None:
            lease = min(watch.lease_s, args.after / 2)
            watch = WatchConfig(every_s=watch.every_s, deadman_after_s=args.after, lease_s=lease)
        return _run(settings, watch, clock, environ, not args.no_fence, stop, say)
    except MlbotError as error:
        say(str(error))
        return error.exit_code
    except ValueError as error:
        say(f"--after {args.after}: {error}")
        return 2


def _run(
    settings: Settings,
    watch: WatchConfig,
    clock: Clock,
    environ: Mapping[str, str] | None,
    fencing: bool,
    stop: threading.Event,
    say: Teller,
) -> int:
    opened = None
    while opened is None and not stop.is_set():
        try:
            opened = open_broker(settings, clock, environ, role="deadman", timeout_s=_TIMEOUT_S)
        except BrokerError as error:
            say(f"cannot reach the account yet: {error}")
            stop.wait(watch.every_s)
    if opened is None:
        return 0
    with opened:
        files = SafetyFiles.of(settings.live_dir, opened.account, clock)
        recorder = Recorder(
            files, lambda: open_ledger(settings.home, clock, opened.account, environ, timeout_s=1.0), opened.broker
        )
        man = DeadMan(
            files,
            opened.broker,
            opened.contract,
            clock,
            watch,
            stale_after_s=settings.risk.stale_after_s,
            records=recorder,
            fencing=fencing,
            say=say,
        )
        say(man.introduction())
        # what a former run could not record
        recorder.start()
        pause_s = min(0.25, watch.deadman_after_s / 8)
        while not stop.is_set():
            man.look()
            stop.wait(pause_s)
        man.end()
        recorder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
