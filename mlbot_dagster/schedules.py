"""Schedules, all stopped until somebody starts them."""

from collections.abc import Iterator

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.timeframe import Month
from mlbot_dagster import jobs


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

    return [refresh_recent_months]
