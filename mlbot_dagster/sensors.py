"""Sensors of live trading: one a timeframe, which asks for ONE run for each bar, shortly before the bar closes.

A run takes seconds to begin. Begun before the close it waits for it, asks for the bar at once, and decides on time.

A sensor only asks. Whether a bar may still be traded is decided in the run, by :mod:`mlbot_core.execution`, whoever
launched it. All are stopped unless ``mlbot up --live`` starts the servers.
"""

import os
from collections.abc import Iterator

import dagster as dg

from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings
from mlbot_core.live import LIVE_VARIABLE
from mlbot_core.timeframe import Market, Timeframe
from mlbot_dagster.assets import live
from mlbot_dagster.priority import LIVE_TAG

# Dagster looks at its sensors every five seconds, and gives each up to a minute
LONGEST_WAIT_MS = 12_000
# how long before the close a run is asked for: a cold Python, Dagster and the definitions take three to six seconds
LEAD_MS = 10_000
PRIORITY = "10"
# A bar whose run was killed gets another: it decides only what was not decided yet, and trades on no bar that is old.
AGAIN = {"dagster/max_retries": "2", "dagster/retry_strategy": "ALL_STEPS"}


def build(settings: Settings) -> list[dg.SensorDefinition]:
    """Return the sensors."""
    return [*(_of_timeframe(settings, timeframe) for timeframe in settings.intervals.timeframes), _failures(settings)]


def due_bar(timeframe: Timeframe, done_ts: int | None, clock: Clock) -> int | None:
    """Return the open time of the bar that a run is to be asked for now; None of none.

    That is the bar that closes within :data:`LEAD_MS` (up to :data:`LONGEST_WAIT_MS` more are waited for); or, after
    a time in which nobody asked, the newest closed one. Bars before it are never asked for: nobody trades on old bars.

    Parameters
    ----------
    done_ts
        Open time of the newest bar that was asked for, UTC ms; None of none.
    """
    now = clock.now_ms()
    current = timeframe.floor(now)
    done = -1 if done_ts is None else done_ts
    wait_ms = current + timeframe.ms - LEAD_MS - now
    if done < current and wait_ms <= LONGEST_WAIT_MS:
        clock.sleep(max(0, wait_ms) / 1000)
        return current
    return current - timeframe.ms if done < current - timeframe.ms else None


def _status() -> dg.DefaultSensorStatus:
    on = os.environ.get(LIVE_VARIABLE) == "1"
    return dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED


def _failures(settings: Settings) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="live_run_failed",
        monitor_all_code_locations=False,
        minimum_interval_seconds=1,
        default_status=_status(),
        description=(
            "Raises an alert for a live run that failed; on the decision clock only reducing is allowed until one "
            "succeeds."
        ),
    )
    def live_run_failed(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        if run.job_name != live.JOB:
            return
        from mlbot_core.live.failures import note_failed_run

        market = Market.parse(run.tags.get("mlbot/market") or str(settings.decision_market))
        told = note_failed_run(settings, clock_from_env(), market, run.run_id, context.failure_event.message or "")
        context.log.info(f"told the book of {', '.join(told) or 'no account: none was ever opened'}")

    return live_run_failed


def _of_timeframe(settings: Settings, timeframe: Timeframe) -> dg.SensorDefinition:
    source = settings.intervals.source

    @dg.sensor(
        name=f"live_bar_{timeframe}",
        job_name=live.JOB,
        minimum_interval_seconds=1,
        default_status=_status(),
        description=(
            f"Asks for one run shortly before each {timeframe} bar closes: pull, forecasts, and on the decision clock "
            f"({settings.execution.timeframe}) the decision and its orders. `mlbot up --live` turns it on."
        ),
    )
    def live_bar(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        done = int(context.cursor) if context.cursor else None
        ts = due_bar(timeframe, done, clock_from_env())
        if ts is None:
            yield dg.SkipReason(f"no {timeframe} bar is due")
            return
        context.update_cursor(str(ts))
        for symbol in settings.intervals.symbols:
            market = Market(symbol, timeframe)
            yield dg.RunRequest(
                run_key=f"{source}|{market}|{ts}",
                run_config=live.run_config(market, ts),
                tags={
                    "mlbot/market": str(market),
                    "mlbot/bar": format_utc(ts),
                    LIVE_TAG: "1",
                    "dagster/priority": PRIORITY,
                    **AGAIN,
                },
            )

    return live_bar
