"""``mlbot doctor``: is this machine fit, is the configuration whole, do the sources answer, does an alert arrive?"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlbot_core.clock import Clock, SystemClock, format_utc
from mlbot_core.config import Settings, load_api_keys
from mlbot_core.config.settings import checkout_root
from mlbot_core.errors import MlbotError, SourceError
from mlbot_core.sources import open_source
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

_MIN_FREE_GIB = 2.0
_GIB = 1024**3
# a bar is decided on 5 s after its close: a clock that is off by as much is early or late by a bar
_MAX_CLOCK_OFFSET_MS = 2000


@dataclass(frozen=True)
class Finding:
    """One examined thing: ``ok``, ``note`` (works without) or ``bad`` (needs mending)."""

    name: str
    state: str
    text: str

    def as_json(self) -> dict[str, str]:
        """Return plain values."""
        return dict(self.__dict__)


def examine(settings: Settings, clock: Clock, *, test_message: bool = False) -> list[Finding]:
    """Return all findings; nothing is changed but the store's own files, which are created where absent.

    Parameters
    ----------
    test_message
        Send one to every configured channel of alerts, which is seen by people.
    """
    from mlbot_core.cli.doctor_trading import findings

    return [
        _guard("python", lambda: _python()),
        _guard("packages", lambda: _packages()),
        _guard("disk", lambda: _disk(settings.home)),
        _guard("clock", lambda: _clock(clock)),
        _guard("keys", lambda: _keys(settings)),
        _guard("store", lambda: _store(settings)),
        _guard("source emulator", lambda: _emulator(settings, clock)),
        _guard("source archive", lambda: _archive(settings, clock)),
        _guard("source coinglass", lambda: _coinglass(settings, clock)),
        _guard("source bybit", lambda: _bybit(settings, clock)),
        *findings(settings, clock),
        *_alerts(settings, test_message),
    ]


def _guard(name: str, look: Callable[[], tuple[str, str]]) -> Finding:
    try:
        state, text = look()
    except (MlbotError, OSError) as error:
        return Finding(name, "bad", str(error))
    return Finding(name, state, text)


def _alerts(settings: Settings, test_message: bool) -> list[Finding]:
    """Say where alerts go, and with ``test_message`` whether each of those places takes one."""
    from mlbot_core.observability.alerts import channels_of, trial_message
    from mlbot_core.observability.redaction import Redactor, secrets_of

    try:
        keys = load_api_keys(settings.config_dir)
    except MlbotError:
        return []  # "keys" says it
    channels = channels_of(settings, os.environ)
    if not channels:
        text = "nobody is told: set slack_webhook in config/api_keys.yaml, MLBOT_SLACK_WEBHOOK or MLBOT_ALERT_WEBHOOK"
        return [Finding("alerts", "bad" if test_message else "note", text)]
    names = [channel.name for channel in channels]
    if not test_message:
        return [Finding("alerts", "ok", f"go to {', '.join(names)}; see whether they arrive with --test-message")]
    redact = Redactor(secrets_of(keys, os.environ))
    found = []
    for channel in channels:
        try:
            channel.send(trial_message(settings))
        except MlbotError as error:
            found.append(Finding(f"alerts: {channel.name}", "bad", redact(str(error))))
        else:
            found.append(Finding(f"alerts: {channel.name}", "ok", "took a test message; look whether it is there"))
    return found


def _python() -> tuple[str, str]:
    found = ".".join(map(str, sys.version_info[:3]))
    return ("ok", found) if sys.version_info >= (3, 11) else ("bad", f"{found}; mlbot needs Python 3.11 or newer")


def _packages() -> tuple[str, str]:
    """Compare what is installed with the pinned versions."""
    path = checkout_root() / "constraints.txt"
    if not path.exists():
        return "note", "constraints.txt is not here; versions were not compared"
    wrong = []
    pinned = [line.partition("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line]
    for name, _, wanted in pinned:
        try:
            found = version(name).partition("+")[0]  # a local part names a build, not a release
        except PackageNotFoundError:
            continue
        if found != wanted.strip():
            wrong.append(f"{name} {found} instead of {wanted.strip()}")
    if wrong:
        return "bad", f"{'; '.join(wrong[:5])}; run make install"
    return "ok", f"{len(pinned)} pinned versions agree"


def _disk(home: Path) -> tuple[str, str]:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / _GIB
    text = f"{free:.1f} GiB free under {home}"
    return ("ok", text) if free >= _MIN_FREE_GIB else ("bad", f"{text}; at least {_MIN_FREE_GIB:g} GiB are needed")


def _clock(clock: Clock) -> tuple[str, str]:
    now = format_utc(clock.now_ms() // 1000 * 1000)
    return ("ok", f"system clock, {now}") if isinstance(clock, SystemClock) else ("note", f"MLBOT_CLOCK is set: {now}")


def _keys(settings: Settings) -> tuple[str, str]:
    keys = load_api_keys(settings.config_dir)
    present = {
        "cg_api": bool(keys.cg_api.get_secret_value()),
        "bybit": bool(keys.bybit.key.get_secret_value()),
        "slack_webhook": bool(keys.slack_webhook.get_secret_value()),
    }
    given = [name for name, there in present.items() if there]
    return ("ok", f"given: {', '.join(given)}") if given else ("note", "no API keys; emulator and archive work without")


def _store(settings: Settings) -> tuple[str, str]:
    with Warehouse(settings.warehouse_path, SystemClock()).read() as con:
        con.execute("SELECT count(*) FROM partitions").fetchone()
    size = settings.warehouse_path.stat().st_size / 1024**2
    return "ok", f"{settings.warehouse_path} opens, {size:.1f} MiB"


def _emulator(settings: Settings, clock: Clock) -> tuple[str, str]:
    from mlbot_core.emulator.launch import serve

    market = Market("BTC", settings.intervals.timeframes[-1])
    start = settings.intervals.emulator.start_ms
    with (
        serve(settings.intervals.emulator, clock) as url,
        open_source("emulator", settings, clock, base_url=url) as source,
    ):
        batch = source.fetch("price", market, start, start + 3 * market.timeframe.ms)
    return "ok", f"answers with {batch.rows} bars (SYNTHETIC, {settings.intervals.emulator.mode})"


def _archive(settings: Settings, clock: Clock) -> tuple[str, str]:
    if not settings.archive_dir.exists():
        return "note", f"no recorded data in {settings.archive_dir}; set MLBOT_ARCHIVE_DIR to use source archive"
    with open_source("archive", settings, clock) as source:
        served = source.served("price", Market("BTC", settings.intervals.timeframes[-1]))
    if served is None or served.earliest_ms is None or served.latest_ms is None:
        return "bad", f"{settings.archive_dir} holds no hourly prices"
    return "ok", f"prices from {format_utc(served.earliest_ms)} to {format_utc(served.latest_ms)}"


def _coinglass(settings: Settings, clock: Clock) -> tuple[str, str]:
    if not load_api_keys(settings.config_dir).cg_api.get_secret_value():
        return "note", "no key: put cg_api into config/api_keys.yaml or set MLBOT_CG_API to use source coinglass"
    from mlbot_core.sources.coinglass import CoinglassSource

    with open_source("coinglass", settings, clock) as source:
        assert isinstance(source, CoinglassSource)
        plan: Any = source.subscription()
    until = format_utc(plan.expires_ms) if plan.expires_ms is not None else "an unknown date"
    return "ok", f"plan {plan.plan}, until {until}"


def _bybit(settings: Settings, clock: Clock) -> tuple[str, str]:
    """Ask Bybit once for the oldest instrument: whether it is reachable from here, and what time it has."""
    from mlbot_core.sources.bybit import BYBIT_URL
    from mlbot_core.sources.bybit_http import BybitClient
    from mlbot_core.sources.bybit_pace import Pace

    url = settings.bybit_url or BYBIT_URL
    client = BybitClient(url, Pace(url, clock, folder=settings.home / "ratelimit"), retries=0)
    try:
        ahead = client.get("get_instruments_info", symbol="BTCUSDT").server_ms - clock.now_ms()
    except SourceError as error:
        return "note", f"{error}. Only source bybit needs it"
    finally:
        client.close()
    text = f"{url} answers without a key"
    if not isinstance(clock, SystemClock):
        return "ok", text
    text += f"; its clock is {ahead / 1000:+.1f} s from ours"
    return ("ok", text) if abs(ahead) <= _MAX_CLOCK_OFFSET_MS else ("bad", f"{text}: set ours (NTP)")
