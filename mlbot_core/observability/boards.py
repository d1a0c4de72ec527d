"""The three Grafana boards: money, machine, model. Their JSON files are made of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Look = Literal["stat", "timeseries", "bargauge", "table"]


@dataclass(frozen=True)
class Panel:
    """One picture.

    Parameters
    ----------
    queries
        PromQL and legend, each.
    unit
        Grafana's name of it: ``currencyUSD``, ``percentunit``, ``s``, ``short`` ...
    width
        Of 24.
    thresholds
        Colour from a value on: ``(None, "green"), (1, "red")``.
    texts
        Words for values.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    look: Look = "timeseries"
    width: int = 8
    thresholds: tuple[tuple[float | None, str], ...] = ()
    texts: tuple[tuple[int, str], ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Board:
    """One page."""

    uid: str
    title: str
    about: str
    panels: tuple[Panel, ...]


_OK_BAD: Final = ((None, "green"), (1.0, "red"))
_LEVELS: Final = ((0, "NORMAL"), (1, "REDUCE_ONLY"), (2, "FLAT_TODAY"), (3, "HALTED"))
_LEVEL_COLOURS: Final = ((None, "green"), (1.0, "yellow"), (2.0, "orange"), (3.0, "red"))


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({q}, sum by (le) (increase({metric}_bucket[6h])))", f"{float(q):.0%}")
        for q in ("0.5", "0.95", "0.99")
    )


MONEY: Final = Board(
    "mlbot-money",
    "mlbot: money",
    "What the account is worth, why, and how far each limit is.",
    (
        Panel("NAV", (("mlbot_nav_usd", "{{account}}"),), "currencyUSD", "stat", 4),
        Panel(
            "Risk level",
            (("mlbot_risk_level", "{{symbol}}"),),
            look="stat",
            width=4,
            thresholds=_LEVEL_COLOURS,
            texts=_LEVELS,
        ),
        Panel(
            "Halt marker",
            (("mlbot_halted", "{{account}}"),),
            look="stat",
            width=4,
            thresholds=_OK_BAD,
            texts=((0, "no"), (1, "HALTED")),
        ),
        Panel("Position", (("mlbot_position", "{{symbol}}"),), "short", "stat", 4, about="Coins, signed."),
        Panel("Loss of the day", (("mlbot_day_loss_ratio", "{{symbol}}"),), "percentunit", "stat", 4),
        Panel("Drawdown", (("mlbot_drawdown_ratio", "{{symbol}}"),), "percentunit", "stat", 4),
        Panel(
            "NAV, its peak and the day's start",
            (
                ("mlbot_nav_usd", "NAV {{symbol}}"),
                ("mlbot_nav_peak_usd", "peak {{symbol}}"),
                ("mlbot_nav_day_start_usd", "day's start {{symbol}}"),
            ),
            "currencyUSD",
            width=12,
        ),
        Panel(
            "Profit and loss by component",
            (("mlbot_pnl_usd", "{{component}}"),),
            "currencyUSD",
            width=12,
            about="Since the first fill in the book; the components add up.",
        ),
        Panel(
            "Left to each limit",
            (("mlbot_limit_headroom_ratio", "{{limit}}"),),
            "percentunit",
            "bargauge",
            8,
            ((None, "red"), (0.005, "orange"), (0.01, "green")),
            about="Share of NAV; nothing left means that the limit acts.",
        ),
        Panel(
            "Exposure and target",
            (("mlbot_exposure_ratio", "held {{symbol}}"), ("mlbot_target_position_ratio", "wanted {{symbol}}")),
            "percentunit",
        ),
        Panel("Active causes", (("mlbot_risk_cause_active", "{{cause}}"),), look="bargauge", thresholds=_OK_BAD),
        Panel(
            "Wallet",
            (
                ("mlbot_wallet_balance", "balance {{coin}}"),
                ("mlbot_wallet_flows", "deposits less withdrawals {{coin}}"),
            ),
            "short",
        ),
        Panel("Exposure", (("mlbot_exposure_usd", "{{symbol}}"),), "currencyUSD"),
        Panel("Traded value a day", (("increase(mlbot_traded_value_usd_total[1d])", "{{account}}"),), "currencyUSD"),
    ),
)

MACHINE: Final = Board(
    "mlbot-machine",
    "mlbot: machine",
    "Is everything alive, quick and fresh?",
    (
        Panel(
            "Exporter",
            (('up{job="mlbot"}', "{{instance}}"),),
            look="stat",
            width=4,
            thresholds=((None, "red"), (1.0, "green")),
            texts=((0, "down"), (1, "up")),
        ),
        Panel(
            "Sources that cannot be read",
            (("count(mlbot_exporter_source_up) - sum(mlbot_exporter_source_up)", ""),),
            look="stat",
            width=4,
            thresholds=_OK_BAD,
        ),
        Panel("Alerts waiting", (("mlbot_alerts_pending", "{{account}}"),), look="stat", width=4, thresholds=_OK_BAD),
        Panel("Open intents", (("mlbot_intents_open", "{{account}}"),), look="stat", width=4),
        Panel("Open orders", (("mlbot_orders_open", "{{account}}"),), look="stat", width=4),
        Panel(
            "Differences to the exchange, a day",
            (("increase(mlbot_reconcile_differences_total[1d])", "{{account}}"),),
            look="stat",
            width=4,
            thresholds=_OK_BAD,
        ),
        Panel(
            "Heartbeats",
            (
                ("mlbot_heartbeat_age_seconds", "{{process}}"),
                ("mlbot_dagster_daemon_heartbeat_age_seconds", "{{daemon}}"),
                ("mlbot_watch_blind_seconds", "account not seen"),
            ),
            "s",
            width=12,
        ),
        Panel(
            "Decision to acknowledged",
            _quantiles("mlbot_decision_to_acknowledged_seconds"),
            "s",
            width=6,
            about="Stamps of the book, six hours.",
        ),
        Panel("Send to acknowledged", _quantiles("mlbot_send_to_acknowledged_seconds"), "s", width=6),
        Panel("Bar close to decision", _quantiles("mlbot_bar_close_to_decision_seconds"), "s", width=6),
        Panel("Orders that ended, a day", (("increase(mlbot_orders_total[1d])", "{{outcome}}"),), width=6),
        Panel(
            "Answers to orders, an hour",
            (
                ("increase(mlbot_order_answers_total[1h])", "{{answer}}"),
                ("increase(mlbot_order_sends_total[1h])", "sends"),
            ),
            width=6,
        ),
        Panel("Fills, a day", (("increase(mlbot_fills_total[1d])", "{{kind}} {{side}}"),), width=6),
        Panel("How intents ended, a day", (("increase(mlbot_intent_closings_total[1d])", "{{reason}}"),), width=8),
        Panel(
            "Attempts and intents, a day",
            (
                ("increase(mlbot_attempts_total[1d])", "attempts"),
                ("increase(mlbot_intents_total[1d])", "intents {{leg}}"),
            ),
            width=8,
        ),
        Panel("Dagster runs", (("mlbot_dagster_runs", "{{status}}"),), width=8),
        Panel(
            "Data age, bars",
            (("mlbot_series_age_seconds / mlbot_series_interval_seconds", "{{series}} {{timeframe}}"),),
            width=12,
            about="From the close of the newest bar.",
        ),
        Panel(
            "Gaps and failed checks",
            (("mlbot_gaps_open", "gaps, fillable: {{fillable}}"), ("mlbot_quality_checks_failed", "failed checks")),
            width=6,
        ),
        Panel(
            "Faults that the emulator made, an hour",
            (("increase(mlbot_emulator_faults_total[1h])", "{{side}}"),),
            width=6,
        ),
        Panel("How the exporter reads", (("mlbot_exporter_source_read_seconds", "{{reads}}"),), "s", width=8),
        Panel(
            "Readings that failed or were passed over, an hour",
            (
                ("increase(mlbot_exporter_source_errors_total[1h])", "failed {{reads}}"),
                ("increase(mlbot_exporter_source_passes_total[1h])", "passed over {{reads}}"),
            ),
            width=8,
        ),
        Panel("Alerts, a day", (("increase(mlbot_alerts_total[1d])", "{{level}} {{code}}"),), width=8),
    ),
)

MODEL: Final = Board(
    "mlbot-model",
    "mlbot: model",
    "What the models say, whether it may be believed, and how old they are.",
    (
        Panel("Score of the newest forecast", (("mlbot_forecast_score", "{{model_type}} {{timeframe}}"),), width=12,
              about="Mean log return ahead in barrier widths."),
        Panel("Forecast age, bars", (("mlbot_forecast_age_seconds / mlbot_forecast_interval_seconds",
                                      "{{model_type}} {{timeframe}}"),), width=6),
        Panel("Usable", (("mlbot_forecast_usable", "{{model_type}} {{timeframe}}"),), look="stat", width=6,
              thresholds=((None, "red"), (1.0, "green")), texts=((0, "no"), (1, "yes"))),
        Panel(
            "Calibration: log loss against the base rate",
            (
                ("mlbot_model_log_loss_nats", "{{model_type}} {{timeframe}}"),
                ("mlbot_model_base_log_loss_nats", "base {{model_type}} {{timeframe}}"),
            ),
            width=8,
            about="Out-of-fold. Below its base line the probabilities are worth something.",
        ),
        Panel("Information coefficient", (("mlbot_model_information_coefficient", "{{model_type}} {{timeframe}}"),)),
        Panel("Drift: largest PSI", (("mlbot_drift_psi_max", "{{symbol}}-{{timeframe}}"),)),
        Panel("Drift: share of features", (("mlbot_drift_features_ratio", "{{symbol}}-{{timeframe}}"),), "percentunit",
              "bargauge", thresholds=((None, "green"), (0.25, "red"))),
        Panel("Champions: deflated Sharpe ratio", (("mlbot_model_champion_dsr", "{{model_type}} {{timeframe}}"),),
              look="bargauge", thresholds=((None, "red"), (0.95, "green"))),
        Panel("Champions: trials counted", (("mlbot_model_champion_trials", "{{model_type}} {{timeframe}}"),),
              look="stat"),
        Panel(
            "Champions: age",
            (
                ("mlbot_model_champion_age_seconds", "since registered {{model_type}} {{timeframe}}"),
                ("mlbot_model_champion_data_age_seconds", "since the end of its data {{model_type}} {{timeframe}}"),
            ),
            "s",
        ),
        Panel("Versions", (("mlbot_models", "{{stage}}"),), look="stat"),
        Panel("Forecasts stored, a day", (("increase(mlbot_forecasts_total[1d])", "{{model_type}} {{timeframe}}"),)),
        Panel("Out-of-fold forecasts of the newest version",
              (("mlbot_backtest_forecasts", "{{model_type}} {{timeframe}}"),), look="stat"),
    ),
)  # fmt: skip

BOARDS: Final = (MONEY, MACHINE, MODEL)
