"""Every metric of the exporter in one table: name, kind, labels, and what it means. Rules and dashboards are made from
these names only.

Prometheus' conventions hold: prefix, base units (seconds, USD, ratios of 1), ``_total`` on counters. Ages are measured
on the product's clock at the moment of the scrape, since a rehearsal's clock is not the wall's. Counters are counted
from the durable books, so a restart of the exporter resets none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "histogram"]

BOOK: Final = ("account",)
TRADED: Final = ("account", "symbol")
MODEL: Final = ("source", "symbol", "timeframe", "model_type")
SERIES: Final = ("source", "series", "symbol", "timeframe")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    name
        As Prometheus shows it; of a histogram without ``_bucket``, ``_sum`` and ``_count``.
    help
        For people, with the unit.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_ALL: Final = (
    # money
    Metric("mlbot_nav_usd", "gauge", TRADED, "Marked equity at the newest mark, USD, fees and funding included."),
    Metric("mlbot_nav_peak_usd", "gauge", TRADED, "NAV that the drawdown is measured from, USD, scaled by flows."),
    Metric("mlbot_nav_day_start_usd", "gauge", TRADED, "NAV at the start of the UTC day, USD, scaled by flows."),
    Metric(
        "mlbot_pnl_usd",
        "gauge",
        ("account", "symbol", "component"),
        "Profit and loss since the first fill in the book by component (realised, unrealised, fees, funding), USD; "
        "costs are negative, so the components add up.",
    ),
    Metric("mlbot_wallet_balance", "gauge", ("account", "coin"), "Wallet balance, in the coin, unrealised excluded."),
    Metric("mlbot_wallet_flows", "gauge", ("account", "coin"), "Deposits less withdrawals in the book, in the coin."),
    Metric(
        "mlbot_wallet_log_breaks",
        "gauge",
        ("account", "coin"),
        "Rows of the wallet's log whose balance does not follow from the one before.",
    ),
    Metric("mlbot_position", "gauge", TRADED, "Position as the fills make it, coins, negative for short."),
    Metric("mlbot_position_average_price_usd", "gauge", TRADED, "Average entry price, USD; 0 when flat."),
    Metric(
        "mlbot_exposure_usd",
        "gauge",
        TRADED,
        "Signed position value, USD: at its average price plus the unrealised profit.",
    ),
    Metric("mlbot_exposure_ratio", "gauge", TRADED, "Signed position value over NAV."),
    Metric("mlbot_target_position_ratio", "gauge", TRADED, "Target of the newest decision, signed share of NAV."),
    Metric("mlbot_drawdown_ratio", "gauge", TRADED, "1 - NAV / peak NAV."),
    Metric("mlbot_day_loss_ratio", "gauge", TRADED, "1 - NAV / NAV at the start of the UTC day; negative is a gain."),
    Metric(
        "mlbot_limit_ratio",
        "gauge",
        ("account", "symbol", "limit"),
        "Configured limit (max_position, daily_loss, drawdown), share of NAV.",
    ),
    Metric(
        "mlbot_limit_headroom_ratio",
        "gauge",
        ("account", "symbol", "limit"),
        "What is left to the limit, share of NAV; 0 and less: reached.",
    ),
    # risk
    Metric("mlbot_risk_level", "gauge", TRADED, "0 NORMAL, 1 REDUCE_ONLY, 2 FLAT_TODAY, 3 HALTED."),
    Metric("mlbot_risk_cause_active", "gauge", ("account", "symbol", "cause"), "1 while the cause is active."),
    Metric("mlbot_risk_state_age_seconds", "gauge", TRADED, "Since the newest mark that the risk machine judged."),
    Metric("mlbot_risk_states_total", "counter", TRADED, "Risk states written."),
    Metric("mlbot_halted", "gauge", BOOK, "1 while the halt marker stands (one that cannot be read counts)."),
    Metric("mlbot_halt_age_seconds", "gauge", BOOK, "Since the halt marker was made; absent without one."),
    # orders
    Metric("mlbot_decisions_total", "counter", ("account", "symbol", "trigger"), "Decisions, by what asked for them."),
    Metric("mlbot_decision_age_seconds", "gauge", TRADED, "Since the newest decision on a bar."),
    Metric("mlbot_decision_interval_seconds", "gauge", TRADED, "Length of the bars that are decided on."),
    Metric("mlbot_intents_total", "counter", ("account", "symbol", "leg"), "Intents planned (entry, close)."),
    Metric("mlbot_intents_open", "gauge", BOOK, "Intents neither complete nor given up."),
    Metric("mlbot_intent_closings_total", "counter", ("account", "reason"), "Intents that ended, by reason."),
    Metric("mlbot_attempts_total", "counter", BOOK, "Orders begun, the first and the later ones of an intent."),
    Metric("mlbot_order_sends_total", "counter", BOOK, "Requests to place an order, repetitions included."),
    Metric(
        "mlbot_order_answers_total",
        "counter",
        ("account", "answer"),
        "What came of sends: acknowledged, refused, ambiguous (timeout, reset, 5xx), absent (looked for, not found).",
    ),
    Metric("mlbot_orders_total", "counter", ("account", "outcome"), "Orders that ended, by the exchange's status."),
    Metric("mlbot_orders_open", "gauge", BOOK, "Orders seen and not over, protective stops included."),
    Metric("mlbot_fills_total", "counter", ("account", "kind", "side"), "Executions by kind and side."),
    Metric("mlbot_traded_value_usd_total", "counter", BOOK, "Value traded, USD."),
    Metric(
        "mlbot_decision_to_acknowledged_seconds",
        "histogram",
        BOOK,
        "From the decision to the exchange's acknowledgement of an order for it, seconds; stamps of the book.",
    ),
    Metric(
        "mlbot_send_to_acknowledged_seconds",
        "histogram",
        BOOK,
        "From the first send of an order to its acknowledgement, seconds; stamps of the book.",
    ),
    Metric(
        "mlbot_bar_close_to_decision_seconds", "histogram", BOOK, "From a bar's close to the decision on it, seconds."
    ),
    Metric("mlbot_alerts_total", "counter", ("account", "level", "code"), "Alerts written into the book, by kind."),
    Metric("mlbot_alerts_pending", "gauge", BOOK, "Alerts that nobody was told of yet."),
    Metric("mlbot_alert_oldest_pending_age_seconds", "gauge", BOOK, "Age of the oldest of them; 0 without one."),
    Metric(
        "mlbot_reconcile_differences_total",
        "counter",
        BOOK,
        "Times that a reconciliation began to find differences between book and exchange.",
    ),
    # processes
    Metric("mlbot_heartbeat_age_seconds", "gauge", ("account", "process"), "Since a process' newest heartbeat."),
    Metric(
        "mlbot_heartbeats_total", "counter", ("account", "process"), "Counter that the process writes with its beats."
    ),
    Metric(
        "mlbot_process_running",
        "gauge",
        ("account", "process"),
        "1 while the process that wrote the newest heartbeat exists on this machine.",
    ),
    Metric("mlbot_process_ended_on_purpose", "gauge", ("account", "process"), "1 if its last beat was a farewell."),
    Metric("mlbot_watch_blind_seconds", "gauge", BOOK, "How long the risk watch had not seen the account at its beat."),
    Metric("mlbot_watch_failures_total", "counter", BOOK, "Looks of the risk watch that failed, since it started."),
    Metric("mlbot_dagster_runs", "gauge", ("status",), "Runs in Dagster's storage by status."),
    Metric("mlbot_dagster_daemon_heartbeat_age_seconds", "gauge", ("daemon",), "Since Dagster's daemon beat (UTC)."),
    Metric("mlbot_emulator_up", "gauge", (), "1 if the configured emulator answers."),
    Metric("mlbot_emulator_faults_total", "counter", ("side",), "Faults that the emulator injected (trading, data)."),
    # data
    Metric("mlbot_series_age_seconds", "gauge", SERIES, "Since the close of the newest stored bar of a raw series."),
    Metric("mlbot_series_interval_seconds", "gauge", SERIES, "Length of the series' bars."),
    Metric("mlbot_series_watched", "gauge", SERIES, "1 if the series is pulled live."),
    Metric("mlbot_gaps_open", "gauge", ("source", "fillable"), "Missing stretches, by whether asking again can help."),
    Metric("mlbot_quality_checks_failed", "gauge", ("source",), "Newest verdicts of stored data that failed."),
    # models
    Metric("mlbot_forecast_age_seconds", "gauge", MODEL, "Since the close of the newest bar with a live forecast."),
    Metric("mlbot_forecast_interval_seconds", "gauge", MODEL, "Length of the bars that it forecasts."),
    Metric("mlbot_forecast_score", "gauge", MODEL, "Newest live forecast: mean log return ahead in barrier widths."),
    Metric("mlbot_forecast_usable", "gauge", MODEL, "1 if a decision may rest on the newest live forecast."),
    Metric("mlbot_forecasts_total", "counter", MODEL, "Live forecasts stored."),
    Metric("mlbot_backtest_forecasts", "gauge", MODEL, "Out-of-fold forecasts stored of the newest version."),
    Metric(
        "mlbot_model_log_loss_nats", "gauge", MODEL, "Mean log loss of the newest version's out-of-fold probabilities."
    ),
    Metric(
        "mlbot_model_base_log_loss_nats",
        "gauge",
        MODEL,
        "The same of always forecasting the training frequencies: below it the probabilities are worth something.",
    ),
    Metric("mlbot_model_information_coefficient", "gauge", MODEL, "Mean rank correlation of score and outcome, folds."),
    Metric("mlbot_drift_psi_max", "gauge", ("source", "symbol", "timeframe"), "Largest PSI of the newest month."),
    Metric(
        "mlbot_drift_features_ratio",
        "gauge",
        ("source", "symbol", "timeframe"),
        "Share of features beyond the configured PSI in the newest month that was judged.",
    ),
    Metric("mlbot_model_champion_age_seconds", "gauge", MODEL, "Since the champion was registered."),
    Metric("mlbot_model_champion_data_age_seconds", "gauge", MODEL, "Since the moment that its training data end at."),
    Metric("mlbot_model_champion_dsr", "gauge", MODEL, "Deflated Sharpe ratio of its gate record, 0 to 1."),
    Metric("mlbot_model_champion_trials", "gauge", MODEL, "Trials that the deflated Sharpe ratio counted."),
    Metric("mlbot_models", "gauge", ("stage",), "Versions in the registry by stage."),
    # the exporter itself
    Metric("mlbot_exporter_source_up", "gauge", ("reads",), "1 if the last reading of this source succeeded."),
    Metric("mlbot_exporter_source_present", "gauge", ("reads",), "1 if there was anything to read."),
    Metric("mlbot_exporter_source_errors_total", "counter", ("reads",), "Readings that failed."),
    Metric("mlbot_exporter_source_passes_total", "counter", ("reads",), "Readings passed over for a writer's sake."),
    Metric(
        "mlbot_exporter_source_age_seconds",
        "gauge",
        ("reads",),
        "Since the last reading that succeeded, seconds of the wall; its metrics stand still as long.",
    ),
    Metric("mlbot_exporter_source_read_seconds", "gauge", ("reads",), "How long the last reading took."),
    Metric("mlbot_build_info", "gauge", ("version", "venue", "source", "symbol"), "1; what runs here."),
)

CATALOGUE: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _ALL}

LATENCY_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
