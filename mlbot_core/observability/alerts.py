"""``python -m mlbot_core.observability.alerts``: tells people what the book, and Prometheus, want them to hear of.

===============================  =============================================================
variable                         meaning
===============================  =============================================================
``MLBOT_SLACK_WEBHOOK``          instead of ``slack_webhook`` of ``api_keys.yaml``
``MLBOT_ALERT_WEBHOOK``          another receiver of plain JSON messages
``MLBOT_ALERT_WEBHOOK_SECRET``   signs them
``MLBOT_PROMETHEUS_URL``         a Prometheus whose firing alerts are told as well
===============================  =============================================================

Alerts lie in the book until they were told. Each key is told once: it is marked after all channels took it. A crash
between the two tells it again after the restart; losing it is not possible. What waits is told together, a message a
kind, at most so many messages a minute; critical ones wait for nobody. A Prometheus that does not answer for a minute
is an alert of its own: its rules watch over everything else, and nobody watches over them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydantic import SecretStr

from mlbot_core.clock import Clock, SystemClock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_api_keys, load_settings
from mlbot_core.errors import MlbotError, UsageError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.observability.channels import Channel, Message, SlackChannel, WebhookChannel, grouped
from mlbot_core.observability.metrics_book import BookReader, accounts_of
from mlbot_core.observability.redaction import Redactor, secrets_of

_LOG = logging.getLogger(__name__)
WATCHER: Final = "prometheus"
EVERY_S: Final = 2.0
PER_MINUTE: Final = 10
SILENT_AFTER_S: Final = 60.0
SILENT: Final = "prometheus_silent"
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 300.0


class Notifier:
    """Takes what waits in the books and tells it.

    Parameters
    ----------
    books
        Return the books of all accounts, asked at every cycle.
    channels
        All are told; an alert is done when all took it.
    redact
        Takes secrets out of texts.
    per_minute
        Messages that are not critical.
    monotonic
        Seconds; measures the pause after a failure, and the rate.
    """

    def __init__(
        self,
        books: Callable[[], Sequence[ExecutionLedger]],
        channels: Sequence[Channel],
        redact: Callable[[str], str],
        *,
        per_minute: int = PER_MINUTE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._books = books
        self._channels = list(channels)
        self._redact = redact
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._sent_at: list[float] = []
        self._took: set[tuple[str, str, str]] = set()
        self._pause_s = dict.fromkeys((channel.name for channel in channels), 0.0)
        self._again_at = dict.fromkeys((channel.name for channel in channels), 0.0)

    def cycle(self) -> int:
        """Tell what waits; return how many alerts are done by it."""
        if not self._channels:
            return 0
        books = {book.account: book for book in self._books()}
        waiting = [(account, alert) for account, book in books.items() for alert in book.pending_alerts()]
        done = 0
        for message, members in grouped(waiting, self._redact):
            if not self._may_send(message.level):
                break
            if self.tell(message, [(account, alert.key) for account, alert in members]):
                for account, alert in members:
                    books[account].alert_delivered(alert.key)
                    done += 1
                    self._took -= {(channel.name, account, alert.key) for channel in self._channels}
        return done

    def tell(self, message: Message, keys: Sequence[tuple[str, str]]) -> bool:
        """Tell one message to the channels that do not have it yet; return whether all have it now."""
        everybody = True
        for channel in self._channels:
            mine = {(channel.name, *key) for key in keys}
            if mine <= self._took:
                continue
            if self._monotonic() < self._again_at[channel.name]:
                everybody = False
                continue
            try:
                channel.send(message)
            except MlbotError as error:
                everybody = False
                pause = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s[channel.name]))
                self._pause_s[channel.name], self._again_at[channel.name] = pause, self._monotonic() + pause
                _LOG.warning("%s did not take an alert: %s", channel.name, self._redact(str(error)))
            else:
                self._pause_s[channel.name] = 0.0
                self._took |= mine
                self._sent_at.append(self._monotonic())
        return everybody

    def _may_send(self, level: AlertLevel) -> bool:
        now = self._monotonic()
        self._sent_at = [at for at in self._sent_at if now - at < 60]
        return level is AlertLevel.CRITICAL or len(self._sent_at) < self._per_minute * len(self._channels)


class PrometheusAlerts:
    """Brings the alerts that Prometheus fires into a book of their own, once for each time that it begins to fire.

    Parameters
    ----------
    url
        Of Prometheus.
    book
        Of the account :data:`WATCHER`.
    timeout_s
        Longest wait for an answer, seconds.
    silent_after_s
        How long Prometheus may be silent before that is told, seconds of ``monotonic``.
    """

    def __init__(
        self,
        url: str,
        book: ExecutionLedger,
        timeout_s: float = 5.0,
        *,
        silent_after_s: float = SILENT_AFTER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/")
        self._book = book
        self._timeout_s = timeout_s
        self._silent_after_s = silent_after_s
        self._monotonic = monotonic
        self._silent_since: tuple[float, int] | None = None
        self._without_book: set[str] = set()

    def firing(self) -> list[tuple[str, AlertLevel, str, str]]:
        """Return key, level, name and text of what fires now.

        Raises
        ------
        OSError, ValueError, KeyError
            If Prometheus does not answer, or not as it should.
        """
        with urllib.request.urlopen(f"{self._url}/api/v1/alerts", timeout=self._timeout_s) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        found = []
        for alert in alerts:
            if alert["state"] != "firing":
                continue
            labels: dict[str, str] = alert["labels"]
            digest = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:24]
            annotations = alert.get("annotations", {})
            text = f"{annotations.get('summary', labels['alertname'])} What to do: {annotations.get('runbook', '')}"
            severity = labels.get("severity", "warning")
            level = AlertLevel(severity) if severity in set(AlertLevel) else AlertLevel.WARNING
            found.append((f"{digest}/{alert['activeAt'][:40]}", level, labels["alertname"], text))
        return found

    def bring(self, directly: Callable[[Message, Sequence[tuple[str, str]]], bool]) -> int:
        """Write what fires into the book; where that fails tell it ``directly``. Return how much was new.

        Raises
        ------
        OSError, ValueError, KeyError
            As :meth:`firing`; a silence that lasts is told before.
        """
        try:
            firing = self.firing()
        except (OSError, ValueError, KeyError):
            self._silent(directly)
            raise
        self._silent_since = None
        return sum(self._bring_one(*alert, directly) for alert in firing)

    def _silent(self, directly: Callable[[Message, Sequence[tuple[str, str]]], bool]) -> None:
        if self._silent_since is None:
            self._silent_since = (self._monotonic(), SystemClock().now_ms())
        since, began_ms = self._silent_since
        if self._monotonic() - since < self._silent_after_s:
            return
        text = (
            f"Prometheus has not answered since {format_utc(began_ms // 1000 * 1000)}: no rule is evaluated. Is it "
            "running, and is MLBOT_PROMETHEUS_URL its address? Alerts of the book itself go on."
        )
        self._bring_one(f"silent/{began_ms}", AlertLevel.CRITICAL, SILENT, text, directly)

    def _bring_one(
        self,
        key: str,
        level: AlertLevel,
        name: str,
        text: str,
        directly: Callable[[Message, Sequence[tuple[str, str]]], bool],
    ) -> bool:
        """Return whether it was new."""
        try:
            return self._book.raise_alert(level, name, text, key=key)
        except MlbotError as error:
            if key in self._without_book:
                return False
            lines = (text, f"(the book of alerts cannot be written: {type(error).__name__})")
            if not directly(Message(level, WATCHER, name, lines, 1), [(WATCHER, key)]):
                return False
            self._without_book.add(key)
            return True


def channels_of(settings: Settings, environ: Mapping[str, str]) -> list[Channel]:
    """Return the configured channels."""
    keys = load_api_keys(settings.config_dir, environ)
    clock = SystemClock()
    found: list[Channel] = []
    if keys.slack_webhook.get_secret_value():
        found.append(SlackChannel(keys.slack_webhook, clock))
    if environ.get("MLBOT_ALERT_WEBHOOK"):
        secret = SecretStr(environ.get("MLBOT_ALERT_WEBHOOK_SECRET", ""))
        found.append(WebhookChannel(SecretStr(environ["MLBOT_ALERT_WEBHOOK"]), clock, secret))
    return found


def send_test_message(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Tell every configured channel that this is a test; return their names, none where none is configured.

    Raises
    ------
    WebhookError
        If one did not take it.
    UsageError
        If an address is not one.
    """
    env = os.environ if environ is None else environ
    names = []
    for channel in channels_of(settings, env):
        channel.send(trial_message(settings))
        names.append(channel.name)
    return names


def trial_message(settings: Settings) -> Message:
    """Return what is told to see whether a channel works."""
    text = f"mlbot doctor on venue {settings.execution.venue}: alerts arrive here. Nothing has to be done."
    return Message(AlertLevel.INFO, settings.execution.venue, "test", (text,), 1)


class _Books:
    """The books of the venue's accounts and of the watcher, opened once."""

    def __init__(self, settings: Settings, clock: Clock, environ: Mapping[str, str]) -> None:
        self._url = environ.get("MLBOT_PG_URL") or None
        self._settings = settings
        self._clock = clock
        self._reader = BookReader(settings.home, self._url)
        self._open: dict[str, ExecutionLedger] = {}

    def of(self, account: str) -> ExecutionLedger:
        if account not in self._open:
            self._open[account] = ExecutionLedger(self._settings.home, self._clock, account, url=self._url)
        return self._open[account]

    def all(self) -> list[ExecutionLedger]:
        with self._reader.connected() as connection:
            if connection is None:
                return []
            accounts = accounts_of(connection, self._settings.execution.venue)
        return [self.of(account) for account in (*accounts, WATCHER)]


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    settings.live_dir.mkdir(parents=True, exist_ok=True)
    path = settings.live_dir / "notifier.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UsageError(f"another notifier holds {path}; two would tell everything twice") from None
    try:
        yield
    finally:
        os.close(fd)


def run(
    settings: Settings, clock: Clock, environ: Mapping[str, str], stopping: threading.Event, every_s: float = EVERY_S
) -> None:
    """Tell what there is to tell until ``stopping`` is set.

    Raises
    ------
    UsageError
        If another notifier runs on this home.
    """
    redact = Redactor(secrets_of(load_api_keys(settings.config_dir, environ), environ))
    books = _Books(settings, clock, environ)
    notifier = Notifier(books.all, channels_of(settings, environ), redact)
    url = environ.get("MLBOT_PROMETHEUS_URL")
    watcher = PrometheusAlerts(url, books.of(WATCHER)) if url else None
    told: dict[str, str] = {}

    def look() -> None:
        if watcher is not None:
            watcher.bring(notifier.tell)

    def attempt(name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whoever calls for help must not die of what they report
            text = redact(f"{type(error).__name__}: {error}")
            if told.get(name) != text:
                _LOG.warning("the notifier: %s: %s", name, text)
            told[name] = text
        else:
            told.pop(name, None)

    with _only_one(settings):
        while not stopping.is_set():
            attempt("asking Prometheus", look)
            attempt("telling alerts", notifier.cycle)
            stopping.wait(every_s)


def main() -> int:
    """Tell alerts until told to stop; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # httpx writes every address into its log, and a webhook's address is its secret
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopping.set())
    try:
        run(load_settings(), clock_from_env(), os.environ, stopping)
    except MlbotError as error:
        print(f"mlbot alerts: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
