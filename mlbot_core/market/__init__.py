"""What a bar and a series are."""

from mlbot_core.market.batch import Capture, GapRecord, SeriesBatch, empty_table, make_table
from mlbot_core.market.catalogue import CATALOGUE, CORE_SERIES, Column, SeriesSpec, series_spec

__all__ = [
    "CATALOGUE",
    "CORE_SERIES",
    "Capture",
    "Column",
    "GapRecord",
    "SeriesBatch",
    "SeriesSpec",
    "empty_table",
    "make_table",
    "series_spec",
]
