"""A real Prometheus scrapes a real exporter while the emulator is traded on; what is shown is what is in the book."""

from __future__ import annotations

import threading
import time

import pytest

from mlbot_core.decision.state import LEVELS
from mlbot_core.observability.alerts import run
from mlbot_core.observability.boards import BOARDS
from mlbot_core.observability.exporter import Exporter
from mlbot_core.observability.rules import RULES
from mlbot_core.timeframe import HOUR_MS

ACCOUNT = 'account="emulator:100001"'
BTC = f'{ACCOUNT}, symbol="BTCUSDT"'


def expressions():
    found = {
        expr: f"{board.uid}: {panel.title}" for board in BOARDS for panel in board.panels for expr, _ in panel.queries
    }
    return found | {part: rule.name for rule in RULES for part in rule.parts}


@pytest.fixture
def watched(traded, prometheus):
    """Prometheus over the exporter; a second and a third bar were decided while it scraped."""
    with (
        Exporter(traded.settings, traded.clock, traded.environ, port=0) as exporter,
        prometheus(exporter.url.removeprefix("http://").removesuffix("/metrics")) as server,
    ):
        server.wait(lambda: server.query("mlbot_nav_usd"))
        for target, lost in (("-0.04", False), ("0.03", True)):
            traded.clock.set_ms(traded.clock.now_ms() // (2 * HOUR_MS) * 2 * HOUR_MS + 2 * HOUR_MS + 2_500)
            traded.trade(target, answer_lost=lost)
        # what was written last is shown
        version = traded.ledger.load_risk_state("BTCUSDT").version
        server.wait(lambda: server.query(f"mlbot_risk_states_total{{{BTC}}} == {version}"))
        yield traded, server


def test_every_expression_has_data_and_ten_values_are_the_books(watched):
    traded, server = watched
    assert "or vector(" not in " ".join(expressions())

    def without_data():
        return {f"{where}: {expr}" for expr, where in expressions().items() if not server.query(expr)}

    # rates need a second sample of what is read every half minute
    server.wait(lambda: not without_data(), 60) if without_data() else None
    assert not without_data()
    _ten_values(traded, server)


def _ten_values(traded, server):
    ledger = traded.ledger
    risk = ledger.load_risk_state("BTCUSDT")
    position = ledger.positions_from_fills()["BTCUSDT"]
    wallet = ledger.wallet_from_events()["USDT"]
    orders = ledger.orders()
    events = [row["kind"] for row in ledger.rows("attempt_events")]
    nav = risk.state.last_nav
    expected = {
        f"mlbot_nav_usd{{{BTC}}}": nav,
        f"mlbot_nav_peak_usd{{{BTC}}}": risk.state.peak_nav,
        f"mlbot_drawdown_ratio{{{BTC}}}": 1 - nav / risk.state.peak_nav,
        f"mlbot_position{{{BTC}}}": float(position.size),
        f'mlbot_pnl_usd{{{BTC}, component="realised"}}': float(position.realised),
        f'mlbot_pnl_usd{{{BTC}, component="fees"}}': -float(position.fees),
        f'mlbot_pnl_usd{{{BTC}, component="funding"}}': -float(position.funding),
        f'mlbot_wallet_balance{{{ACCOUNT}, coin="USDT"}}': float(wallet.balance),
        f"sum(mlbot_fills_total{{{ACCOUNT}}})": len(ledger.executions()),
        f'mlbot_orders_total{{{ACCOUNT}, outcome="Filled"}}': sum(o.terminal for o in orders),
        f"mlbot_orders_open{{{ACCOUNT}}}": sum(not o.terminal for o in orders),
        f"mlbot_order_sends_total{{{ACCOUNT}}}": events.count("sent"),
        f'mlbot_order_answers_total{{{ACCOUNT}, answer="ambiguous"}}': events.count("ambiguous"),
        f"mlbot_risk_level{{{BTC}}}": LEVELS.index("NORMAL"),
        f"mlbot_alerts_pending{{{ACCOUNT}}}": len(ledger.pending_alerts()),
        f"mlbot_decision_to_acknowledged_seconds_count{{{ACCOUNT}}}": events.count("acknowledged"),
        'mlbot_forecast_score{model_type="meta"}': 0.125,
        "mlbot_model_champion_dsr": 0.97,
        "mlbot_drift_features_ratio": 0.25,
        "mlbot_model_log_loss_nats": 1.15,
        'mlbot_gaps_open{fillable="yes"}': 1,
        'mlbot_dagster_runs{status="SUCCESS"}': 1,
    }
    shown = {expr: server.number(expr) for expr in expected}
    assert shown == pytest.approx(expected)
    # the components explain the whole of what the account gained on its deposits
    total = server.number(f"sum(mlbot_pnl_usd{{{BTC}}})")
    assert total == pytest.approx(nav - float(wallet.opening + wallet.flows), abs=0.01)
    assert events.count("ambiguous") > 0
    exchange = traded.broker.position("BTCUSDT")
    worth = server.number(f"mlbot_exposure_usd{{{BTC}}}")
    assert worth == pytest.approx(float(exchange.size * exchange.mark_price), abs=0.1)


def test_a_halt_fires_its_alert_which_reaches_slack(traded, prometheus, slack):
    environ = {**traded.environ, "MLBOT_SLACK_WEBHOOK": slack.url}
    stopping = threading.Event()
    with (
        Exporter(traded.settings, traded.clock, traded.environ, port=0) as exporter,
        prometheus(exporter.url.removeprefix("http://").removesuffix("/metrics")) as server,
    ):
        environ["MLBOT_PROMETHEUS_URL"] = server.url
        server.wait(lambda: server.query("mlbot_halted == 0"))
        notifier = threading.Thread(target=run, args=(traded.settings, traded.clock, environ, stopping, 0.2))
        notifier.start()
        try:
            assert not [body for body in slack.bodies if "MlbotHalted" in body["text"]]
            traded.safety.halt("ann", "a drill", traded.clock.now_ms())
            halted = server.wait(lambda: [body for body in slack.bodies if "MlbotHalted" in body["text"]], 20)
            time.sleep(3)
            assert [body for body in slack.bodies if "MlbotHalted" in body["text"]] == halted
        finally:
            stopping.set()
            notifier.join(10)
    assert "CRITICAL MlbotHalted" in halted[0]["text"]
    assert "docs/runbook.md#mlbothalted" in halted[0]["text"]
