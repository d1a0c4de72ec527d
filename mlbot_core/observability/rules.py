"""When a person is called: every alert rule with what to do then. The rule file and the runbook are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Rule:
    """One alert.

    Parameters
    ----------
    name
        Also the anchor of its part of the runbook, in lower case.
    value
        PromQL of what is compared; it has data while all is well, too, so that silence means health.
    compare
        Comparison with a number, for example ``> 0.05``.
    hold
        How long it must be true, as Prometheus writes durations.
    what, do
        What happened, and what to do, for people.
    guard
        A further condition, joined by ``and``: its comparison apart, it has data while all is well, too.
    """

    name: str
    severity: Severity
    value: str
    compare: str
    hold: str
    what: str
    do: str
    guard: str = ""
    guard_on: tuple[str, ...] = ()
    guard_compare: str = ""

    @property
    def expr(self) -> str:
        """The whole PromQL expression."""
        whole = f"{self.value} {self.compare}"
        if not self.guard:
            return whole
        on = f" on ({', '.join(self.guard_on)})" if self.guard_on else ""
        return f"({whole}) and{on} ({self.guard} {self.guard_compare})"

    @property
    def parts(self) -> tuple[str, ...]:
        """What is compared, each of which has data while all is well."""
        return (self.value, self.guard) if self.guard else (self.value,)


def _alive(process: str) -> tuple[str, tuple[str, ...], str]:
    return f'mlbot_process_ended_on_purpose{{process=~"{process}"}}', ("account",), "== 0"


_WATCH: Final = _alive("risk-watch")
_DEADMAN: Final = "dead-?man"

RULES: Final = (
    Rule(
        "MlbotHalted",
        "critical",
        "mlbot_halted",
        "== 1",
        "0s",
        "The halt marker of {{ $labels.account }} stands: nothing opens or adds.",
        "Read who halted and why: `mlbot status`. Find the cause first; then a person re-arms with `mlbot resume`.",
    ),
    Rule(
        "MlbotRiskHalted",
        "critical",
        "mlbot_risk_level",
        ">= 3",
        "0s",
        "The risk machine of {{ $labels.symbol }} is HALTED (drawdown, kill switch or an error).",
        "`mlbot status` names the active causes. The position is flattened: check that it is at the exchange, too.",
    ),
    Rule(
        "MlbotFlatToday",
        "warning",
        "mlbot_risk_level",
        "== 2",
        "0s",
        "The daily loss limit of {{ $labels.symbol }} was reached: flat until the next UTC day.",
        "Nothing has to be done; it clears by itself. Look at the day's fills: `mlbot explain`.",
    ),
    Rule(
        "MlbotReduceOnly",
        "warning",
        "mlbot_risk_level",
        "== 1",
        "10m",
        "{{ $labels.symbol }} may only reduce for ten minutes now.",
        "The panel *causes* says why: stale data (see MlbotDataStale), drift, a difference (MlbotReconcile) or an "
        "exchange that answers badly. Each clears by itself once its reason is gone.",
    ),
    Rule(
        "MlbotDrawdownNear",
        "warning",
        'mlbot_limit_headroom_ratio{limit="drawdown"}',
        "< 0.05",
        "1m",
        "Less than 5 % of NAV is left to the halt by drawdown.",
        "Decide before the machine does: lower `max_position`, or stop with `mlbot halt`.",
    ),
    Rule(
        "MlbotDailyLossNear",
        "warning",
        'mlbot_limit_headroom_ratio{limit="daily_loss"}',
        "< 0.01",
        "1m",
        "Less than 1 % of NAV is left to the day's loss limit.",
        "Nothing has to be done: at the limit the position is closed until the next UTC day.",
    ),
    Rule(
        "MlbotPositionOverCap",
        "critical",
        'mlbot_limit_headroom_ratio{limit="max_position"}',
        "< -0.01",
        "2m",
        "The position of {{ $labels.symbol }} is more than 1 % of NAV above its cap and is not trimmed.",
        "Compare with the exchange. If it is real: `mlbot flatten`, then find out why no trim was sent.",
    ),
    Rule(
        "MlbotRiskWatchSilent",
        "critical",
        'mlbot_heartbeat_age_seconds{process="risk-watch"}',
        "> 15",
        "5s",
        "The risk watch of {{ $labels.account }} is silent; the dead-man acts soon.",
        "See its log and `mlbot status`. The supervisor restarts it; if it does not come back, `mlbot flatten`.",
        *_WATCH,
    ),
    Rule(
        "MlbotWatchBlind",
        "critical",
        "mlbot_watch_blind_seconds",
        "> 60",
        "30s",
        "The risk watch of {{ $labels.account }} has not seen the account for a minute: the limits are not watched.",
        "Is the exchange reachable (`mlbot doctor`), is the key still good? The stop at the exchange holds meanwhile.",
        *_WATCH,
    ),
    Rule(
        "MlbotDeadManSilent",
        "critical",
        f'mlbot_heartbeat_age_seconds{{process=~"{_DEADMAN}"}}',
        "> 60",
        "10s",
        "The dead-man's switch of {{ $labels.account }} is silent.",
        "See its log; has its key expired? Without it nobody closes the position when this machine's risk watch fails.",
        *_alive(_DEADMAN),
    ),
    Rule(
        "MlbotReconcile",
        "critical",
        'mlbot_risk_cause_active{cause="reconcile"}',
        "== 1",
        "2m",
        "Position, orders, fills or wallet of {{ $labels.symbol }} differ from the exchange's for two minutes.",
        "`mlbot status` lists the differences. Did somebody trade by hand in this account? Only reducing is allowed "
        "until a reconciliation is clean.",
    ),
    Rule(
        "MlbotWalletLogBroken",
        "warning",
        "mlbot_wallet_log_breaks",
        "> 0",
        "5m",
        "The wallet's log has a hole: a balance does not follow from the one before.",
        "A row is missing between two others; the next reconciliation asks again. If it stays, compare with the "
        "exchange's transaction log.",
    ),
    Rule(
        "MlbotAmbiguousOrders",
        "warning",
        'increase(mlbot_order_answers_total{answer="ambiguous"}[15m])',
        "> 2",
        "0s",
        "Several orders in a quarter of an hour had no clear answer.",
        "Each is resolved by asking, none is sent blindly again. The exchange or the line is bad: see its status page.",
    ),
    Rule(
        "MlbotOrdersRejected",
        "warning",
        'increase(mlbot_orders_total{outcome="Rejected"}[1h])',
        "> 2",
        "0s",
        "The exchange rejected several orders within an hour.",
        "`mlbot explain <order>` shows its reason: margin, price band, instrument rules, key permissions.",
    ),
    Rule(
        "MlbotOrdersSlow",
        "warning",
        "histogram_quantile(0.95, sum by (account, le) (increase(mlbot_decision_to_acknowledged_seconds_bucket[6h])))",
        "> 15",
        "5m",
        "Orders reach the exchange more than 15 s after their decision (95 % quantile of six hours).",
        "Look at the machine board: another run on the cores, a slow disk under the book, an exchange that is late?",
    ),
    Rule(
        "MlbotDecisionMissing",
        "critical",
        "mlbot_decision_age_seconds / mlbot_decision_interval_seconds",
        "> 1.2",
        "2m",
        "A bar of {{ $labels.symbol }} closed and was not decided.",
        "See the newest live run in Dagster and whether the sensor is on. A bar that is older than a tenth of its "
        "length is not traded any more; the next one is.",
        *_WATCH,
    ),
    Rule(
        "MlbotDataStale",
        "warning",
        "mlbot_series_age_seconds / mlbot_series_interval_seconds",
        "> 2.2",
        "5m",
        "No new bar of {{ $labels.series }} {{ $labels.symbol }}-{{ $labels.timeframe }} for more than two bars.",
        "`mlbot doctor` asks the source. After an outage `mlbot backfill` closes the gap.",
        "mlbot_series_watched",
        (),
        "== 1",
    ),
    Rule(
        "MlbotGaps",
        "info",
        'mlbot_gaps_open{fillable="yes"}',
        "> 0",
        "2h",
        "Bars are missing that the source could still give.",
        "Run `mlbot backfill --again` for the months of the gap (`mlbot status` names it).",
    ),
    Rule(
        "MlbotQualityFailed",
        "info",
        "mlbot_quality_checks_failed",
        "> 0",
        "2h",
        "Stored data failed a check; whatever needs them refuses to run.",
        "`mlbot status` names asset, partition and reason.",
    ),
    Rule(
        "MlbotForecastStale",
        "warning",
        "mlbot_forecast_age_seconds / mlbot_forecast_interval_seconds",
        "> 2.2",
        "5m",
        "{{ $labels.model_type }} did not forecast {{ $labels.symbol }}-{{ $labels.timeframe }} for over two bars.",
        "See the newest live run in Dagster: a stale input, a model that cannot be loaded, or a sensor that is off.",
        *_WATCH[:1],
        ("instance",),
        _WATCH[2],
    ),
    Rule(
        "MlbotDrift",
        "warning",
        "mlbot_drift_features_ratio",
        "> 0.25",
        "1h",
        "More than a quarter of the features drifted from what the model was trained on.",
        "Look at the month's drift asset, then retrain: `mlbot train`.",
    ),
    Rule(
        "MlbotChampionOld",
        "info",
        "mlbot_model_champion_data_age_seconds",
        "> 5184000",
        "1h",
        "The champion of {{ $labels.symbol }}-{{ $labels.timeframe }} ({{ $labels.model_type }}) ends 60 days ago.",
        "Train, backtest and, if it passes the gate, promote a newer one: `mlbot models promote`.",
    ),
    Rule(
        "MlbotAlertsUndelivered",
        "critical",
        "mlbot_alert_oldest_pending_age_seconds",
        "> 600",
        "1m",
        "An alert waits for ten minutes: nobody is told.",
        "Is the notifier running, is `slack_webhook` right (`mlbot doctor`), is Slack reachable from here?",
    ),
    Rule(
        "MlbotBlind",
        "critical",
        "mlbot_exporter_source_up",
        "== 0",
        "2m",
        "The exporter cannot read {{ $labels.reads }}; its metrics stand still.",
        "The exporter's log has the reason. For `registry` it may be that the registry was tampered with.",
    ),
    Rule(
        "MlbotStandstill",
        "warning",
        'mlbot_exporter_source_age_seconds{reads!="registry"}',
        "> 600",
        "1m",
        "What the exporter shows of {{ $labels.reads }} is more than ten minutes old.",
        "Somebody holds the store for long (`mlbot_exporter_source_passes_total`), or the reader hangs: restart it.",
    ),
    Rule(
        "MlbotExporterDown",
        "critical",
        'up{job="mlbot"}',
        "== 0",
        "30s",
        "The exporter does not answer.",
        "Restart it (`mlbot up --live` does by itself) and see its log. Trading does not depend on it.",
    ),
    Rule(
        "MlbotDaemonSilent",
        "warning",
        "mlbot_dagster_daemon_heartbeat_age_seconds",
        "> 180",
        "1m",
        "Dagster's {{ $labels.daemon }} daemon is silent: sensors and schedules stand still.",
        "See the daemon's log; the supervisor restarts it.",
    ),
    Rule(
        "MlbotRunsFailed",
        "warning",
        'delta(mlbot_dagster_runs{status="FAILURE"}[30m])',
        "> 0",
        "0s",
        "A run failed within half an hour.",
        "Dagster's UI shows its error; a live run that failed costs one bar at most.",
    ),
    Rule(
        "MlbotEmulatorDown",
        "warning",
        "mlbot_emulator_up",
        "== 0",
        "30s",
        "The emulator does not answer.",
        "See its log; the supervisor restarts it, and everything else waits.",
    ),
)
