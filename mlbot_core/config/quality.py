"""``quality`` of ``intervals.yaml``: how good the data of a month has to be."""

from __future__ import annotations

from pydantic import Field

from mlbot_core.config.base import Frozen


class SourceQualityConfig(Frozen):
    """Bounds that are other for one source; what is absent is as for all.

    Parameters
    ----------
    max_missing_share, max_gap_bars
        As for all sources.
    """

    max_missing_share: float | None = Field(default=None, ge=0, le=1)
    max_gap_bars: int | None = Field(default=None, ge=0)


class QualityConfig(Frozen):
    """Bounds of the checks of a month of one series.

    Parameters
    ----------
    max_missing_share
        Share of the month's bars that may be missing.
    max_gap_bars
        Bars in a row that may be missing.
    max_price_difference
        Two sources' closes may differ by this fraction ...
    max_differing_share
        ... and by more in this share of the bars.
    jump_window, jump_scale
        A change counts as a jump beyond so many robust standard deviations of so many changes before it.
    max_standstill_bars
        So many bars in a row may repeat the bar before them.
    restatement_days
        For so long after its close a bar is expected to be restated in the ordinary course of things: a backfill asks
        for younger stored bars again.
    sources
        Other bounds for single sources.
    """

    max_missing_share: float = Field(ge=0, le=1)
    max_gap_bars: int = Field(ge=0)
    max_price_difference: float = Field(default=0.005, gt=0)
    max_differing_share: float = Field(default=0.02, ge=0, le=1)
    jump_window: int = Field(default=200, ge=20)
    jump_scale: float = Field(default=30.0, gt=0)
    max_standstill_bars: int = Field(default=24, ge=1)
    restatement_days: float = Field(default=7.0, ge=0)
    sources: dict[str, SourceQualityConfig] = Field(default_factory=dict)

    def of(self, source: str) -> QualityConfig:
        """Return the bounds that hold for a source."""
        own = self.sources.get(source)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True))
