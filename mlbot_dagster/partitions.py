"""The partitions of every asset: market x month for data, market x model type for models.

Dagster sorts the dimensions by name, so a key reads ``BTC-2h|2024-03-01`` or ``BTC-2h|lightgbm``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dagster as dg

from mlbot_core.config import Settings
from mlbot_core.config.models import BASE_MODELS, BASELINES, META_MODEL, MODEL_NAMES
from mlbot_core.timeframe import Market, Month
from mlbot_dagster import betas

betas.silence()

MARKET = "market"
MONTH = "month"
MODEL = "model"
TRAINED_MODELS = (*BASE_MODELS, *BASELINES)


def monthly(settings: Settings) -> dg.MultiPartitionsDefinition:
    """Market x month, the current month included."""
    return dg.MultiPartitionsDefinition(
        {
            MARKET: _markets(settings),
            MONTH: dg.MonthlyPartitionsDefinition(
                start_date=settings.intervals.history_start.isoformat(), end_offset=1
            ),
        }
    )


def per_model(settings: Settings, models: Sequence[str] = MODEL_NAMES) -> dg.MultiPartitionsDefinition:
    """Market x model type."""
    return dg.MultiPartitionsDefinition({MARKET: _markets(settings), MODEL: dg.StaticPartitionsDefinition(models)})


def of_the_same_market() -> dg.MultiPartitionMapping:
    """A partition rests on everything of its market: a model on all months, a month on all models."""
    return dg.MultiPartitionMapping(
        {MARKET: dg.DimensionPartitionMapping(dimension_name=MARKET, partition_mapping=dg.IdentityPartitionMapping())}
    )


def the_same_model(models: Sequence[str]) -> dg.MultiPartitionMapping:
    """A partition rests on the one of its own name, where that is among these models."""
    same = dg.StaticPartitionMapping({model: model for model in models})
    return dg.MultiPartitionMapping(
        {
            MARKET: dg.DimensionPartitionMapping(MARKET, dg.IdentityPartitionMapping()),
            MODEL: dg.DimensionPartitionMapping(MODEL, same),
        }
    )


def every_model_of_the_symbol(settings: Settings) -> dg.MultiPartitionMapping:
    """A meta-model rests on all stacked models of all timeframes of its symbol."""
    markets = settings.intervals.markets
    of_symbol = {str(m): [str(other) for other in markets if other.symbol == m.symbol] for m in markets}
    stacked = {model: META_MODEL for model in settings.models.meta.models}
    return dg.MultiPartitionMapping(
        {
            MARKET: dg.DimensionPartitionMapping(MARKET, dg.StaticPartitionMapping(of_symbol)),
            MODEL: dg.DimensionPartitionMapping(MODEL, dg.StaticPartitionMapping(stacked)),
        }
    )


def split_months(keys: Iterable[str]) -> dict[Market, tuple[Month, ...]]:
    """Return the months of each market among partition keys ``BTC-2h|2024-03-01``."""
    found: dict[Market, list[Month]] = {}
    for key in keys:
        market, _, month = key.partition("|")
        found.setdefault(Market.parse(market), []).append(Month.parse(month))
    return {market: tuple(sorted(months)) for market, months in sorted(found.items())}


def split_models(keys: Sequence[str]) -> list[tuple[Market, str]]:
    """Return market and model type of partition keys ``BTC-2h|lightgbm``."""
    return [(Market.parse(key.partition("|")[0]), key.partition("|")[2]) for key in keys]


def _markets(settings: Settings) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([str(market) for market in settings.intervals.markets])
