"""The exporter outlives whatever it looks at, writes nothing, and makes nobody wait."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from decimal import Decimal as D

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlbot_core.clock import FixedClock
from mlbot_core.config import load_settings
from mlbot_core.decision.state import DATA_STALE, KILL, RECONCILE, initial_state
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.safety import SafetyFiles, folder_of
from mlbot_core.execution.types import WalletEvent
from mlbot_core.observability.exporter import Exporter, address_of
from mlbot_core.observability.metrics import Latencies, MlbotCollector, PassedOver, Readings, Since
from mlbot_core.observability.metrics_catalogue import CATALOGUE
from mlbot_core.observability.metrics_ledger import LedgerMetrics
from mlbot_core.observability.metrics_store import StoreMetrics
from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse import Warehouse

BUILD = {"version": "1", "venue": "emulator", "source": "emulator", "symbol": "BTCUSDT"}
ACCOUNT = "emulator:1"
QUIET = 1_740_000_000_000 // (4 * HOUR_MS) * 4 * HOUR_MS + HOUR_MS // 4


def settings_of(home):
    return load_settings({"MLBOT_HOME": str(home)})


def scraped(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def test_a_fresh_home_is_served_and_stays_empty(tmp_path):
    environ = {**os.environ, "MLBOT_HOME": str(tmp_path / "home"), "MLBOT_EXPORTER_PORT": "0"}
    environ.pop("MLBOT_PG_URL", None)
    command = [sys.executable, "-m", "mlbot_core.observability.exporter"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http\S+", process.stdout.readline())[0]
            assert url.startswith("http://127.0.0.1:")
            deadline = time.monotonic() + 20
            while True:
                found = scraped(url)
                up = {k[1][1]: v for k, v in found.items() if k[0] == "mlbot_exporter_source_up"}
                if all(up.values()) or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        finally:
            process.terminate()
        assert process.wait(10) == 0
    assert up == dict.fromkeys(("ledger", "safety", "warehouse", "registry", "dagster", "emulator"), 1.0)
    assert {v for k, v in found.items() if k[0] == "mlbot_exporter_source_present"} == {0.0}
    assert not (tmp_path / "home").exists(), "whoever only looks makes nothing"


class Broken:
    name = "ledger"
    every_s = 0.01

    def __init__(self):
        self.fail = False
        self.calls = 0

    def read(self):
        self.calls += 1
        if self.fail:
            raise RuntimeError("gone")
        readings = Readings()
        readings.put("mlbot_nav_usd", 5.0, account="a", symbol="s")
        return readings


class Hanging(Broken):
    name = "warehouse"

    def __init__(self):
        super().__init__()
        self.free = threading.Event()

    def read(self):
        self.free.wait(30)


def values(collector):
    return {(s.name, *sorted(s.labels.items())): s.value for family in collector.collect() for s in family.samples}


def test_a_source_that_fails_keeps_its_last_values_and_says_so():
    source = Broken()
    collector = MlbotCollector([source], FixedClock(0), BUILD)
    nav = ("mlbot_nav_usd", ("account", "a"), ("symbol", "s"))
    assert nav not in values(collector)
    collector.poll()
    source.fail = True
    collector.poll()
    collector.poll()
    found = values(collector)
    assert found[nav] == 5.0
    assert found["mlbot_exporter_source_up", ("reads", "ledger")] == 0.0
    assert found["mlbot_exporter_source_errors_total", ("reads", "ledger")] == 2.0
    source.fail = False
    collector.poll()
    assert values(collector)["mlbot_exporter_source_up", ("reads", "ledger")] == 1.0


def test_a_source_that_hangs_holds_up_neither_a_scrape_nor_the_others():
    hanging, healthy = Hanging(), Broken()
    collector = MlbotCollector([hanging, healthy], FixedClock(0), BUILD)
    collector.start()
    try:
        deadline = time.monotonic() + 10
        while healthy.calls < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
        found = values(collector)
        assert time.monotonic() - began < 1.0
        assert healthy.calls >= 5
        assert found["mlbot_exporter_source_up", ("reads", "warehouse")] == 0.0
        assert found["mlbot_exporter_source_age_seconds", ("reads", "warehouse")] > 0.0
    finally:
        hanging.free.set()
        collector.stop()


def test_ages_grow_by_the_products_clock_between_readings():
    clock = FixedClock(10_000)

    class Aged(Broken):
        def read(self):
            readings = Readings()
            readings.put("mlbot_decision_age_seconds", Since(4_000), account="a", symbol="s")
            return readings

    collector = MlbotCollector([Aged()], clock, BUILD)
    collector.poll()
    clock.sleep(100)
    assert values(collector)["mlbot_decision_age_seconds", ("account", "a"), ("symbol", "s")] == 106.0


def test_values_that_are_not_known_are_left_out_and_wrong_labels_refused():
    readings = Readings()
    readings.put("mlbot_nav_usd", float("nan"), account="a", symbol="s")
    assert readings.values == {}
    with pytest.raises(KeyError, match="labels"):
        readings.put("mlbot_nav_usd", 1.0, account="a")
    with pytest.raises(KeyError):
        readings.put("mlbot_of_nothing", 1.0)


def test_latencies_are_counted_by_their_upper_bounds():
    latencies = Latencies()
    for seconds in (0.05, 0.06, 1000.0, -1.0):
        latencies.add(seconds)
    assert (latencies.counts[0], latencies.counts[1], latencies.counts[-1]) == (2, 1, 1)
    assert latencies.total_s == pytest.approx(1000.11)


@pytest.fixture
def book(tmp_path):
    with ExecutionLedger(tmp_path, FixedClock(QUIET), ACCOUNT) as ledger:
        yield ledger


def deposit(number, change, balance):
    zero = D(0)
    return WalletEvent(f"w{number}", "TRANSFER_IN", "USDT", number, D(change), zero, zero, D(change), D(balance))


def test_the_book_is_read_on_a_connection_that_cannot_write_while_somebody_writes(book, tmp_path):
    book.save_risk_state("BTCUSDT", initial_state()._replace(causes=DATA_STALE | KILL), after=0, actor="me")
    book.record_wallet_event(deposit(1, "100", "100"))
    source = LedgerMetrics(settings_of(tmp_path), {})
    with source._reader.connected() as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("DELETE FROM execution_wallet_events")
    writer = sqlite3.connect(tmp_path / "execution.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        found = source.read().values
    finally:
        writer.execute("ROLLBACK")
        writer.close()
    assert found["mlbot_wallet_balance"] == {(ACCOUNT, "USDT"): 100.0}
    assert found["mlbot_risk_level"] == {(ACCOUNT, "BTCUSDT"): 3.0}
    active = {labels[2] for labels, value in found["mlbot_risk_cause_active"].items() if value}
    assert active == {"data_stale", "kill"}
    assert "mlbot_nav_usd" not in found, "NAV is unknown before the first mark"


def test_only_what_was_added_is_read_and_another_book_is_read_anew(book, tmp_path):
    source = LedgerMetrics(settings_of(tmp_path), {})
    assert source.read() is None
    book.record_wallet_event(deposit(1, "100", "100"))
    source.read()
    book.record_wallet_event(deposit(2, "50", "150"))
    book.raise_alert(AlertLevel.CRITICAL, "no_beat", "x", key="1")
    for causes in (RECONCILE, RECONCILE, 0, DATA_STALE, RECONCILE | DATA_STALE):
        book.set_flags("BTCUSDT", "reconciler", causes)
    found = source.read().values
    assert found["mlbot_wallet_flows"] == {(ACCOUNT, "USDT"): 150.0}
    assert found["mlbot_alerts_pending"] == {(ACCOUNT,): 1.0}
    assert found["mlbot_reconcile_differences_total"] == {(ACCOUNT,): 2.0}
    book.close()
    (tmp_path / "execution.sqlite").rename(tmp_path / "old.sqlite")
    for left in tmp_path.glob("execution.sqlite-*"):
        left.unlink()
    with ExecutionLedger(tmp_path, FixedClock(QUIET), ACCOUNT) as other:
        other.record_wallet_event(deposit(1, "7", "7"))
        assert source.read().values["mlbot_wallet_balance"] == {(ACCOUNT, "USDT"): 7.0}


def test_accounts_of_other_venues_are_not_shown(tmp_path):
    for account in ("testnet:1", "emulator:1", "emulator:2", "emulatorx:1", "prometheus"):
        with ExecutionLedger(tmp_path, FixedClock(QUIET), account) as ledger:
            ledger.record_wallet_event(deposit(1, "7", "7"))
    found = LedgerMetrics(settings_of(tmp_path), {}).read().values["mlbot_wallet_balance"]
    assert {account for account, _ in found} == {"emulator:1", "emulator:2"}


def test_the_store_is_not_visited_around_a_close_nor_waited_for(tmp_path):
    clock = FixedClock(QUIET)
    settings = settings_of(tmp_path)
    source = StoreMetrics(settings, clock)
    assert source.read() is None
    assert not settings.warehouse_path.exists()
    store = Warehouse(settings.warehouse_path, clock)
    with store.write():
        began = time.monotonic()
        with pytest.raises(PassedOver):
            source.read()
        assert time.monotonic() - began < 2.0
    assert source.read().values["mlbot_quality_checks_failed"] == {("emulator",): 0.0}
    for ms in (-1_000, 0, 10_000):
        near = StoreMetrics(settings, FixedClock(QUIET // HOUR_MS * HOUR_MS + ms))
        with pytest.raises(PassedOver):
            near.read()


def test_a_marker_that_cannot_be_read_is_shown_as_a_halt(tmp_path):
    settings = settings_of(tmp_path)
    files = SafetyFiles(folder_of(settings.live_dir, ACCOUNT), ACCOUNT, FixedClock(QUIET))
    files.beat("risk-watch")
    with Exporter(settings, FixedClock(QUIET + 3_000), {}, port=0) as exporter:
        exporter.collector.poll()
        found = scraped(exporter.url)
        assert found["mlbot_halted", ("account", ACCOUNT)] == 0.0
        beat = (("account", ACCOUNT), ("process", "risk-watch"))
        assert found["mlbot_heartbeat_age_seconds", *beat] == 3.0
        assert found["mlbot_process_running", *beat] == 1.0
        (files.folder / "HALTED").write_text("{", encoding="utf-8")
        exporter.collector.poll()
        assert scraped(exporter.url)["mlbot_halted", ("account", ACCOUNT)] == 1.0


def test_every_metric_has_help_and_labels_and_is_served(tmp_path):
    with Exporter(settings_of(tmp_path), FixedClock(QUIET), {}, port=0) as exporter:
        with urllib.request.urlopen(exporter.url, timeout=5) as answer:
            text = answer.read().decode()
        for metric in CATALOGUE.values():
            assert f"# HELP {metric.name} {metric.help}" in text
        port = int(exporter.url.rpartition(":")[2].partition("/")[0])
        second = Exporter(settings_of(tmp_path), FixedClock(QUIET), {}, port=port)
        with pytest.raises(UsageError, match="MLBOT_EXPORTER_PORT"):
            second.__enter__()


@pytest.mark.parametrize("text", ["x", "70000", "-1", "٣"])
def test_a_port_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="MLBOT_EXPORTER_PORT"):
        address_of({"MLBOT_EXPORTER_PORT": text})
    assert address_of({}) == ("127.0.0.1", 9464)


@pytest.mark.slow
def test_the_book_in_postgres_is_read_alike(postgres_url, tmp_path):
    with ExecutionLedger(tmp_path, FixedClock(QUIET), "emulator:77", url=postgres_url) as ledger:
        ledger.record_wallet_event(deposit(1, "100", "100"))
        ledger.save_risk_state("BTCUSDT", initial_state()._replace(causes=KILL), after=0, actor="me")
    source = LedgerMetrics(settings_of(tmp_path), {"MLBOT_PG_URL": postgres_url})
    found = source.read().values
    assert found["mlbot_wallet_balance"]["emulator:77", "USDT"] == 100.0
    assert found["mlbot_risk_level"]["emulator:77", "BTCUSDT"] == 3.0
    with source._reader.connected() as connection, pytest.raises(Exception, match="read-only"):
        connection.exec_driver_sql("DELETE FROM execution_wallet_events")
