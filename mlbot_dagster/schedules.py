"""Schedules, all stopped until somebody starts them."""

from collections.abc import Iterator

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.timeframe import HOUR_MS, MINUTE_MS, Market, Month, Timeframe
from mlbot_dagster import jobs, upkeep


def build(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Return the schedules."""

    @dg.schedule(
        name="refresh_recent_months",
        job_name=jobs.DATA,
        cron_schedule="20 0 * * *",
        description=(
            "Each night the current and the previous month are pulled and derived again: labels of the last bars "
            "become known, late and restated bars are kept as versions."
        ),
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
    def refresh_recent_months(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        now_ms = int(context.scheduled_execution_time.timestamp() * 1000)
        current = Month.of(now_ms)
        previous = Month.of(current.start_ms - 1)
        for market in settings.intervals.markets:
            yield dg.RunRequest(
                run_key=f"{market}|{context.scheduled_execution_time.isoformat()}",
                tags={
                    "dagster/asset_partition_range_start": f"{market}|{previous.key}",
                    "dagster/asset_partition_range_end": f"{market}|{current.key}",
                },
            )

    @dg.schedule(
        name="repair_gaps_hourly",
        job_name=upkeep.REPAIR,
        cron_schedule="17 * * * *",
        description="Each hour the bars that are missing and may be filled are asked for again.",
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
    def repair_gaps_hourly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for market in settings.intervals.markets:
            yield dg.RunRequest(
                run_key=f"{market}|{context.scheduled_execution_time.isoformat()}",
                run_config=upkeep.run_config("fill_open_gaps", market),
                tags={"mlbot/market": str(market)},
            )

    return [
        refresh_recent_months,
        repair_gaps_hourly,
        *(_refresh_newest(settings, timeframe) for timeframe in settings.intervals.timeframes),
    ]


def _refresh_newest(settings: Settings, timeframe: Timeframe) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"refresh_newest_bars_{timeframe}",
        job_name=upkeep.REFRESH,
        cron_schedule=_after_each_bar(timeframe),
        description=(
            f"Two minutes after each {timeframe} bar the newest bars of every series are read again. The first time "
            "begins the watch: bars that close from then on are known from when they were seen."
        ),
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
    def refresh_newest_bars(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for symbol in settings.intervals.symbols:
            market = Market(symbol, timeframe)
            yield dg.RunRequest(
                run_key=f"{market}|{context.scheduled_execution_time.isoformat()}",
                run_config=upkeep.run_config("read_newest_bars", market),
                tags={"mlbot/market": str(market)},
            )

    return refresh_newest_bars


def _after_each_bar(timeframe: Timeframe) -> str:
    """Return the cron expression of two minutes past each bar's close: later than every source's settle delay."""
    if timeframe.ms < HOUR_MS:
        step = timeframe.ms // MINUTE_MS
        return f"{','.join(str(minute) for minute in range(2 % step, 60, step))} * * * *"
    hours = timeframe.ms // HOUR_MS
    return "2 * * * *" if hours == 1 else f"2 */{min(hours, 24)} * * *" if hours < 24 else "2 0 * * *"
