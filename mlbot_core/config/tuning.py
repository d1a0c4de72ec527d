"""The ``tuning`` section of ``models.yaml``: how parameters are searched, and among which."""

from __future__ import annotations

from pydantic import Field, model_validator

from mlbot_core.config.base import Frozen


class RangeConfig(Frozen):
    """Where to look for one parameter: an interval, or a list of choices.

    Parameters
    ----------
    low, high
        Both included.
    log
        Search evenly in the logarithm.
    whole
        Whole numbers only.
    choices
        Instead of an interval.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: list[float | int | str | bool] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_kind(self) -> RangeConfig:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.whole:
                raise ValueError("a parameter has either choices or low and high")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}, or give choices")
        elif self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 to be searched in the logarithm")
        elif self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"low {self.low} and high {self.high} of a whole number must be whole")
        return self


class TuningConfig(Frozen):
    """The search for parameters before a walk forward.

    Parameters
    ----------
    trials
        Parameter sets to try, the configured one first.
    folds
        Purged folds of the rows before the first test window.
    startup_trials
        Drawn at random before the sampler learns from what it saw.
    seed
        Of the sampler.
    risk_aversion
        Of the utility: mean less half of it times the variance of daily net returns; 1 is the growth rate.
    min_days
        With fewer days before the first test window nothing is searched.
    space
        Model type to parameter to where to look; model types without one cannot be tuned.
    """

    trials: int = Field(default=30, ge=1)
    folds: int = Field(default=4, ge=2)
    startup_trials: int = Field(default=10, ge=1)
    seed: int = 7
    risk_aversion: float = Field(default=1.0, ge=0)
    min_days: int = Field(default=180, ge=30)
    space: dict[str, dict[str, RangeConfig]] = Field(default_factory=dict)
