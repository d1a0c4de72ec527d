"""What goes on by itself beside trading: backups and the audit of a day; retraining, stacking, backtests when due."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from mlbot_core.clock import clock_from_env, format_utc
from mlbot_core.config import Settings
from mlbot_core.config.models import META_MODEL
from mlbot_core.timeframe import Market, Month
from mlbot_core.warehouse import Warehouse
from mlbot_dagster import jobs
from mlbot_dagster.assets import audit
from mlbot_dagster.resources import MarketData

BACKUP = "back_up"


class BackupConfig(dg.Config):
    """How many backups are kept."""

    kept: int = Field(default=7, ge=1, description="The newest so many days.")


@dg.op(description="Copy the store, the books and the models into the home's backups folder, checked.")
def copy_everything(context: dg.OpExecutionContext, config: BackupConfig, market_data: MarketData) -> None:
    """Make today's backup."""
    from mlbot_core.live.backups import back_up

    made = back_up(market_data.settings, market_data.clock, kept=config.kept)
    context.add_output_metadata(
        {
            "folder": str(made.folder),
            "rows of the store": made.rows,
            "rows of the books": sum(made.books.values()),
            "models": made.models,
            "MiB": round(made.bytes / 1024**2, 1),
            "left out": "; ".join(made.elsewhere) or "nothing",
            "removed": ", ".join(made.removed) or "none",
        }
    )


def build_jobs() -> list[dg.JobDefinition]:
    """Return the job of backups."""
    graph = dg.GraphDefinition(name=BACKUP, node_defs=[copy_everything])
    text = "Copy the store, the books and the models into the home's backups folder; keys stay out."
    return [graph.to_job(description=text, executor_def=dg.in_process_executor)]


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Return the schedules, all stopped until somebody starts them.

    A week's work follows itself by the clock: trained on Saturday morning, stacked at noon, traded in the afternoon.
    Each step takes what is stored when it begins, and refuses what failed its checks.
    """

    def in_use(*, only_due: bool = False) -> list[tuple[Market, str]]:
        from mlbot_core.live.retraining import ages

        found = ages(Warehouse(settings.warehouse_path, clock_from_env()), settings, settings.intervals.source)
        return [(one.market, one.model_type) for one in found if one.due or not only_due]

    @_schedule("back_up_daily", BACKUP, "40 1 * * *", "Each night a checked copy of everything but the keys.")
    def back_up_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        yield dg.RunRequest(run_key=_key(context, BACKUP))

    @_schedule(
        "retrain_when_due",
        jobs.TRAIN,
        "10 3 * * *",
        "Each night the models that are older than their retraining interval are trained again.",
    )
    def retrain_when_due(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for market, model in in_use(only_due=True):
            if model != META_MODEL:
                yield dg.RunRequest(run_key=_key(context, f"{market}|{model}"), partition_key=f"{market}|{model}")

    @_schedule(
        "walk_forward_weekly",
        jobs.TRAIN,
        "10 4 * * 6",
        "Each Saturday every model that is in use walks forward over all history again.",
    )
    def walk_forward_weekly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for market, model in in_use():
            if model != META_MODEL:
                yield dg.RunRequest(run_key=_key(context, f"{market}|{model}"), partition_key=f"{market}|{model}")

    @_schedule(
        "stack_weekly", jobs.STACK, "10 12 * * 6", "Each Saturday the meta-models that are in use are trained again."
    )
    def stack_weekly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for market, model in in_use():
            if model == META_MODEL:
                yield dg.RunRequest(run_key=_key(context, f"{market}|{model}"), partition_key=f"{market}|{model}")

    @_schedule("backtest_weekly", jobs.BACKTEST, "10 14 * * 6", "Each Saturday the new forecasts are traded on paper.")
    def backtest_weekly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        for market, model in in_use():
            yield dg.RunRequest(run_key=_key(context, f"{market}|{model}"), partition_key=f"{market}|{model}")

    @_schedule(
        "drift_daily", jobs.DRIFT, "50 1 * * *", "Each night this month's features are compared with the training's."
    )
    def drift_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        month = Month.of(int(context.scheduled_execution_time.timestamp() * 1000))
        for market in sorted({market for market, _ in in_use()}):
            yield dg.RunRequest(run_key=_key(context, str(market)), partition_key=f"{market}|{month.key}")

    @_schedule(
        "audit_daily",
        audit.JOB,
        "30 0 * * *",
        "Each night the last day of live trading is simulated again, and challengers trade on paper.",
    )
    def audit_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        from mlbot_core.live.parity_day import last_day

        # named, so that a run that waits past midnight is still about the day that it was asked for
        day = format_utc(last_day(clock_from_env()))[:10]
        yield dg.RunRequest(run_key=_key(context, audit.JOB), run_config=audit.run_config(day))

    return [
        audit_daily,
        back_up_daily,
        retrain_when_due,
        walk_forward_weekly,
        stack_weekly,
        backtest_weekly,
        drift_daily,
    ]


def _schedule(name: str, job: str, cron: str, text: str) -> Any:
    return dg.schedule(
        name=name,
        job_name=job,
        cron_schedule=cron,
        description=text,
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )


def _key(context: dg.ScheduleEvaluationContext, what: str) -> str:
    return f"{what}|{context.scheduled_execution_time.isoformat()}"
