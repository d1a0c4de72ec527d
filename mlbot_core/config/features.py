"""``features``, ``targets`` and ``drift`` of ``models.yaml``: what models are fed, and when it has changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mlbot_core.config.base import Frozen


class FeatureSetConfig(Frozen):
    """A named feature set: families, and names on top of them or taken out of them.

    Parameters
    ----------
    families
        Names of feature families; ``all`` stands for every one there is.
    include, exclude
        Names of single features.
    normalise
        Replaces the trailing z-score of the features that have it: ``rank``, ``robust``, ``winsor`` or ``none``.
    """

    families: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    normalise: Literal["zscore", "rank", "robust", "winsor", "none"] = "zscore"


class FeatureConfig(Frozen):
    """Which feature set is made and how it is normalised.

    Parameters
    ----------
    set
        Name of the set that is made.
    zscore_window
        Bars of the trailing window of every normalisation.
    sets
        Every named set; empty stands for those of ``models.yaml``.
    """

    zscore_window: int = Field(ge=20)
    sets: dict[str, FeatureSetConfig] = Field(default_factory=dict)
    set: str


class BarrierConfig(Frozen):
    """One more triple barrier beside the main one.

    Parameters
    ----------
    horizon
        Bars until the vertical barrier.
    width
        Of the other two, in horizon standard deviations.
    """

    horizon: int = Field(ge=1)
    width: float = Field(gt=0)


class TargetConfig(Frozen):
    """Triple barriers and volatility-adjusted returns; lengths in bars, widths in horizon standard deviations.

    Parameters
    ----------
    volatility_window
        Bars of the trailing standard deviation that scales everything.
    horizon, barrier_width
        The main triple barrier (``tb_*``) and the horizon of the main forward return (``var_ret``).
    barriers
        Further triple barriers by name: ``{fast: {horizon: 4, width: 0.8}}`` makes ``tb_label_fast`` and its kin.
    horizons
        Further horizons of the forward return: ``[24]`` makes ``var_ret_24``. A list, so that it equals its JSON.
    """

    volatility_window: int = Field(ge=10)
    horizon: int = Field(ge=1)
    barrier_width: float = Field(gt=0)
    barriers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")], BarrierConfig] = Field(default_factory=dict)
    horizons: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _distinct(self) -> TargetConfig:
        if len(set(self.horizons)) != len(self.horizons):
            raise ValueError(f"horizons {self.horizons} names one twice")
        return self

    @property
    def reach(self) -> int:
        """Bars after a row that its slowest label looks at."""
        return max([self.horizon, *self.horizons, *(barrier.horizon for barrier in self.barriers.values())])


class DriftConfig(Frozen):
    """When the features of a month count as drifted from a model's training window.

    Parameters
    ----------
    psi_alarm
        A feature has drifted when its population stability index is above this, and above what chance explains.
    max_drifted_share
        The month fails when more of its features than this have drifted.
    row_quantile
        A row is out of distribution beyond this quantile of the training rows' distance.
    max_row_share
        The month fails when more of its rows than this are out of distribution.
    min_rows
        A month with fewer rows is not judged: its statistics would be noise.
    """

    psi_alarm: float = Field(default=0.25, gt=0)
    max_drifted_share: float = Field(default=0.25, gt=0, le=1)
    row_quantile: float = Field(default=0.999, gt=0.5, lt=1)
    max_row_share: float = Field(default=0.05, gt=0, le=1)
    min_rows: int = Field(default=50, ge=10)
