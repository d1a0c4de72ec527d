"""A home in which everything happened that a metric tells of, by the real parts: the emulator, a broker, the book."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pydantic import SecretStr

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.config.secrets import KeyPair
from mlbot_core.decision.risk import risk_check
from mlbot_core.decision.state import RECONCILE, Limits, Observation, initial_state
from mlbot_core.emulator import EmulatorServer
from mlbot_core.emulator.bybit_api import BybitOptions
from mlbot_core.emulator.exchange import ApiKey, ExchangeOptions, TradeFault, TradeFaultSchedule
from mlbot_core.execution.broker import Accepted, Ambiguous, Venue
from mlbot_core.execution.bybit import BybitBroker
from mlbot_core.execution.identifiers import decision_id
from mlbot_core.execution.intents import (
    Situation,
    Ticket,
    goal_from_fraction,
    market_request,
    plan_intents,
    rules_from_risk,
)
from mlbot_core.execution.ledger import ExecutionLedger
from mlbot_core.execution.ledger_folds import AttemptEvent
from mlbot_core.execution.ledger_risk import AlertLevel
from mlbot_core.execution.ledger_states import BAR, DecisionRecord
from mlbot_core.execution.safety import SafetyFiles, folder_of
from mlbot_core.live.code import Code
from mlbot_core.live.signal_store import Signal, SignalKey, write_signals
from mlbot_core.market import GapRecord
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe
from mlbot_core.warehouse import Warehouse, replace_window, watches
from mlbot_core.warehouse.gaps import record_gaps

MARKET_START = parse_utc_ms("2025-02-10")
NOW = parse_utc_ms("2025-02-20T10:37:21Z")
ACCOUNT = "emulator:100001"
SYMBOL = "BTCUSDT"
TWO_HOURS = Timeframe.parse("2h")
ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(0.1, 0.105, 0.03, 0.25, 10 * HOUR_MS, 0.02, 300_000)


class TradedHome:
    """A home, the book in it and an account at a running emulator."""

    def __init__(self, home: Path, server: EmulatorServer, clock: FixedClock, broker: BybitBroker) -> None:
        self.home, self.server, self.clock, self.broker = home, server, clock, broker
        self.environ = {"MLBOT_HOME": str(home), "MLBOT_EMULATOR_URL": server.url}
        self.settings = load_settings(self.environ)
        self.ledger = ExecutionLedger(home, clock, ACCOUNT)
        self.safety = SafetyFiles(folder_of(self.settings.live_dir, ACCOUNT), ACCOUNT, clock)

    def trade(self, target: str, *, answer_lost: bool = False) -> None:
        """Decide on the newest closed bar and carry it out, as the trader does: book first, then the exchange."""
        ts = TWO_HOURS.floor(self.clock.now_ms()) - TWO_HOURS.ms
        name = decision_id(ACCOUNT, SYMBOL, TWO_HOURS, ts)
        decision = DecisionRecord(name, "mlbot", SYMBOL, BAR, "2h", ts, self.clock.now_ms(), D(target), {})
        held, quote = self.broker.position(SYMBOL), self.broker.ticker(SYMBOL)
        nav = self.broker.wallet().total_equity
        situation = Situation(held.size, held.average_price, quote.mark, nav)
        instrument, rules = self.broker.instrument(SYMBOL), rules_from_risk(self.settings.risk)
        ticket = Ticket("mlbot", ACCOUNT, name, self.clock.now_ms() + HOUR_MS)
        goal = goal_from_fraction(D(target), situation, instrument, rules)
        plan = plan_intents(goal, situation, instrument, rules, ticket)
        assert plan
        self.ledger.record_decision(decision, plan)
        for intent in plan:
            self.clock.sleep(0.7)
            request = market_request(intent, 0, intent.qty)
            self.ledger.begin_attempt(intent.intent_id, request)
            if answer_lost:
                fault = TradeFault("reset", endpoint="order/create", when="after", count=1, probability=1.0)
                self.server.exchange.install_faults(TradeFaultSchedule((fault,)))
            outcome = self.broker.place(request, may_send=lambda: True)
            self.clock.sleep(0.4)
            if isinstance(outcome, Ambiguous):
                self.ledger.note_answer(request.order_link_id, AttemptEvent.AMBIGUOUS)
            else:
                assert isinstance(outcome, Accepted), outcome
                self.ledger.note_answer(request.order_link_id, AttemptEvent.ACKNOWLEDGED)
            self.clock.sleep(0.5)
            seen = self.broker.order(SYMBOL, request.order_link_id)
            assert seen is not None
            self.ledger.observe_order(seen)
            self.read_account()
        self.mark()

    def read_account(self) -> None:
        self.ledger.record_executions(self.broker.executions_since(SYMBOL, MARKET_START))
        self.ledger.record_wallet_events(self.broker.wallet_events_since(MARKET_START))

    def mark(self) -> None:
        """One look of the risk watch."""
        wallet, position, quote = self.broker.wallet(), self.broker.position(SYMBOL), self.broker.ticker(SYMBOL)
        now, mark = self.clock.now_ms(), float(quote.mark)
        seen = Observation(now, -1, mark, float(wallet.total_equity), float(position.size), 0.0, 0, 0)
        self.ledger.update_risk_state(
            SYMBOL, lambda before: risk_check(before or initial_state(), seen, LIMITS), actor="risk-watch"
        )
        for name in ("risk-watch", "dead-man"):
            self.safety.beat(name, blind_s=0.0, failures=0)


@pytest.fixture
def traded(tmp_path: Path, registry_bench: Any) -> Iterator[TradedHome]:
    """One round of everything that is watched."""
    clock = FixedClock(NOW)
    home = tmp_path / "home"
    pair = KeyPair(key=SecretStr("trade-key"), secret=SecretStr("trade-secret"))
    options = ExchangeOptions(keys=(ApiKey("trade-key", "trade-secret", parent_uid=1),))
    with ExitStack() as stack:
        server = stack.enter_context(
            EmulatorServer(
                seed=7, start_ms=MARKET_START, clock=clock, bybit=BybitOptions(ip_calls=100_000), trading=options
            )
        )
        broker = BybitBroker(Venue.EMULATOR, pair, clock, url=server.url, timeout_s=(2.0, 0.6))
        stack.callback(broker.close)
        made = TradedHome(home, server, clock, broker)
        stack.callback(made.ledger.close)
        made.read_account()
        made.mark()
        made.trade("0.05")
        made.ledger.set_flags(SYMBOL, "reconciler", RECONCILE, "position differs by 0.001")
        made.ledger.set_flags(SYMBOL, "reconciler", 0)
        made.ledger.raise_alert(AlertLevel.WARNING, "api_degraded", "no answer", key="degraded/1")
        _fill_store(home, clock)
        bench = dataclasses.replace(registry_bench, home=home)
        bench.promote(bench.register())
        _run_dagster(home)
        yield made


def _fill_store(home: Path, clock: FixedClock) -> None:
    """Stored bars, a gap, models, forecasts, signals and drift, written by what writes them."""
    scope = {"source": "emulator", "symbol": "BTC", "timeframe": "2h"}
    bar = TWO_HOURS.floor(NOW) - TWO_HOURS.ms
    store = Warehouse(home / "warehouse.duckdb", clock)
    values = {"open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume_usd": 1.0, "volume_coin": 1.0}
    row = {**scope, "ts": bar, "observed_at": NOW, "known_at": NOW, "capture": "live", **values}
    model = {**scope, "model_type": "meta", "model_version": "v" * 64}
    with store.write() as con:
        con.execute(f"INSERT INTO price BY NAME SELECT {', '.join(f'? AS {name}' for name in row)}", list(row.values()))
        watches.begin(con, "price", source="emulator", symbol="BTC", timeframe=TWO_HOURS, since_ms=bar, now_ms=NOW)
        gap = GapRecord(
            "price", "BTC", TWO_HOURS, "emulator", bar - 8 * TWO_HOURS.ms, bar - 7 * TWO_HOURS.ms, "nothing"
        )
        record_gaps(con, [gap], now_ms=NOW)
        folds = [
            {"log_loss": 1.0, "base_log_loss": 1.1, "ic": 0.1, "forecast_rows": 100},
            {"log_loss": 1.2, "base_log_loss": 1.1, "ic": 0.3, "forecast_rows": 300},
        ]
        registered = pa.table({"created_at": pa.array([NOW], pa.int64()), "folds": [json.dumps(folds)]})
        replace_window(con, "models", model, registered)
        replace_window(con, "forecasts", model, pa.table({"ts": pa.array([bar, bar - 1], pa.int64())}))
        drift = {"feature": ["a", "b", "c", "d"], "psi": [0.1, 0.5, 0.2, 0.1], "ts": pa.array([bar] * 4, pa.int64())}
        replace_window(con, "feature_drift", model, pa.table(drift))
    signal = Signal(
        SignalKey("emulator", Market("BTC", TWO_HOURS), bar, "meta", "v" * 64),
        "champion",
        {"p_down": 0.2, "p_neutral": 0.5, "p_up": 0.3, "score": 0.125, "score_sd": 0.5},
        0.02, 0.001, 1.0, True, False, "", NOW, NOW, NOW, "run-1", "c" * 64, np.ones((1, 2)), (), {},
    )  # fmt: skip
    write_signals(store, [signal], Code("c" * 64, {}))
    store.close()


def _run_dagster(home: Path) -> None:
    """One run and one sign of life in Dagster's own storage."""
    import dagster as dg
    from dagster._daemon.types import DaemonHeartbeat

    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def small() -> None:
        nothing()

    (home / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(tempdir=str(home / "dagster")) as instance:
        small.execute_in_process(instance=instance)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "one", []))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(params)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the vector of an expression now, without what is not a number."""
        rows = self.get("/api/v1/query", query=expr)["result"]
        return [row for row in rows if row["value"][1] != "NaN"]

    def number(self, expr: str) -> float:
        rows = self.query(expr)
        assert len(rows) == 1, f"{expr}: {rows}"
        return float(rows[0]["value"][1])

    def wait(self, look: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Return the first true thing that ``look`` finds."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found or time.monotonic() > deadline:
                assert found, "waited in vain"
                return found
            time.sleep(0.3)


@pytest.fixture
def prometheus(tmp_path: Path) -> Callable[[str], Any]:
    """Return what starts a Prometheus, with the shipped configuration and rules, on an exporter's address."""
    program = shutil.which("prometheus")
    if program is None:
        if os.environ.get("MLBOT_REQUIRE_PROMETHEUS"):
            pytest.fail("prometheus is required here and absent")
        pytest.skip("no prometheus on this machine (Debian: apt-get install prometheus)")

    @contextmanager
    def start(target: str) -> Iterator[Prometheus]:
        folder = tmp_path / "prometheus"
        shutil.copytree(ROOT / "deploy" / "prometheus", folder)
        config = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (folder / "targets.json").write_text(json.dumps([{"targets": [target]}]), encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            made = Prometheus(f"http://127.0.0.1:{port}")
            made.wait(lambda: _answers(f"{made.url}/-/ready"))
            yield made
        finally:
            process.terminate()
            process.wait(30)

    return start


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class FakeSlack:
    """An incoming webhook on loopback: takes JSON, answers what it is told to (200 when nothing), keeps everything."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                if status == 200:
                    outer.bodies.append({"path": self.path, **json.loads(text)})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/T000/B000/canary-webhook-token"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    fake = FakeSlack()
    yield fake
    fake.close()
