"""``models.yaml``: feature sets, targets, the walk-forward split and the parameters of every model type."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from mlbot_core.config.base import Frozen
from mlbot_core.config.features import DriftConfig, FeatureConfig, TargetConfig
from mlbot_core.config.tuning import TuningConfig

BASE_MODELS: Final = ("lightgbm", "catboost", "tft")
META_MODEL: Final = "meta"
BASELINES: Final = ("ridge", "momentum", "constant")
MODEL_NAMES: Final = (*BASE_MODELS, *BASELINES, META_MODEL)
"""Every model type by name, in the order in which they are trained; the classes behind them are heavy to import."""


class RetrainConfig(Frozen):
    """Another schedule for one model type; what is absent is as for all.

    Parameters
    ----------
    train_days, min_train_days, test_days
        Instead of what ``walk_forward`` says for all.
    timeframes
        Where ``--model all`` trains it; empty for everywhere. Asked for by name it is trained on any.
    """

    train_days: int | None = Field(default=None, ge=1)
    min_train_days: int | None = Field(default=None, ge=1)
    test_days: int | None = Field(default=None, ge=1)
    timeframes: list[str] = Field(default_factory=list)


class WalkForwardConfig(Frozen):
    """Lengths of the walk-forward split, in days, and the embargo in bars.

    Parameters
    ----------
    train_days
        At most this much history trains a fold.
    min_train_days
        A test window with less history before it is skipped.
    test_days
        Length of a test window: how often a model is trained again.
    embargo_bars
        Bars before each test window in which no training label may end.
    models
        Other schedules by model type.
    """

    train_days: int = Field(ge=1)
    min_train_days: int = Field(ge=1)
    test_days: int = Field(ge=1)
    embargo_bars: int = Field(ge=0)
    models: dict[str, RetrainConfig] = Field(default_factory=dict)

    def of(self, model_type: str) -> WalkForwardConfig:
        """Return the schedule of one model type.

        Raises
        ------
        pydantic.ValidationError
            If what is overridden does not fit the rest.
        """
        other = self.models.get(model_type, RetrainConfig()).model_dump(exclude_none=True, exclude={"timeframes"})
        return WalkForwardConfig.model_validate({**self.model_dump(exclude={"models"}), **other})

    @model_validator(mode="after")
    def _ordered(self) -> WalkForwardConfig:
        if self.min_train_days > self.train_days:
            raise ValueError(f"min_train_days {self.min_train_days} exceeds train_days {self.train_days}")
        for name in self.models:
            self.of(name)
        return self


class WeightsConfig(Frozen):
    """How much each training label counts: its average uniqueness, times a decay with age.

    Parameters
    ----------
    oldest
        Factor of the oldest label, falling linearly in cumulative uniqueness; 1 for no decay
        (:func:`mlbot_core.targets.weights.time_decay`).
    """

    oldest: float = Field(default=1.0, gt=-1, le=1)


class MetaConfig(Frozen):
    """The meta-model: which forecasts it stacks, and how far it may move from their plain mean.

    Parameters
    ----------
    models
        Base model types; those that are not trained are left out.
    timeframes
        Of the base forecasts; empty for every configured one. Longer and shorter ones are joined as of their close.
    max_age_bars
        A base forecast older than so many bars of the meta-model's timeframe counts as missing.
    penalties
        Ridge penalties to choose from, per training row; the greatest means the plain mean of the base forecasts.
    folds
        Purged folds inside the training rows, on which the penalty is chosen.
    seed
        For the version; nothing is drawn.
    """

    models: list[str] = Field(min_length=1)
    timeframes: list[str] = Field(default_factory=list)
    max_age_bars: int = Field(default=2, ge=0)
    penalties: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    folds: int = Field(default=5, ge=2)
    seed: int = 0


class CalibrationConfig(Frozen):
    """How forecasts are corrected on training rows that the trees did not see.

    Parameters
    ----------
    method
        ``temperature``, for probabilities: one number that draws the forecasts to the training frequencies or away
        from them. ``scale``, for a mean and a deviation: one number for the distance of the mean from the training
        mean, one for the deviation.
    share
        Of the training rows, the latest ones, that judge.
    gap_bars
        Bars between the rows that grow the judged trees and the rows that judge; at least ``targets.horizon``.
    min_rows
        With fewer rows that judge nothing is corrected, and the artefact says so.
    refit
        Grow the trees once more on all training rows afterwards, which takes about twice as long: else the newest
        rows only judge.
    """

    method: Literal["temperature", "scale", "none"] = "none"
    share: float = Field(default=0.2, gt=0, le=0.5)
    gap_bars: int = Field(default=12, ge=1)
    min_rows: int = Field(default=200, ge=20)
    refit: bool = True


class LightGBMConfig(Frozen):
    """Parameters of the direction classifier, by LightGBM's own names, and the calibration of its probabilities.

    Parameters
    ----------
    n_estimators
        Trees.
    learning_rate
        Share of each tree that is taken over.
    num_leaves
        Leaves of a tree at most.
    min_child_samples
        Rows in a leaf at least.
    subsample, subsample_freq
        Share of the rows that grow a tree, drawn anew every so many trees.
    colsample_bytree
        Share of the features that each tree chooses from.
    reg_lambda
        L2 penalty on the leaves' values.
    seed
        Of the draws.
    """

    n_estimators: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    num_leaves: int = Field(ge=2)
    min_child_samples: int = Field(ge=1)
    subsample: float = Field(gt=0, le=1)
    subsample_freq: int = Field(ge=0)
    colsample_bytree: float = Field(gt=0, le=1)
    reg_lambda: float = Field(ge=0)
    seed: int
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _of_probabilities(self) -> LightGBMConfig:
        if self.calibration.method == "scale":
            raise ValueError("calibration.method scale is for a mean and a deviation; use temperature or none")
        return self


class CatBoostConfig(Frozen):
    """Parameters of the regression of the score, by CatBoost's own names.

    Parameters
    ----------
    iterations
        Trees.
    learning_rate
        Share of each tree that is taken over.
    depth
        Of the trees.
    l2_leaf_reg
        L2 penalty on the leaves' values.
    subsample
        Share of the rows that grow each tree (Bernoulli).
    rsm
        Share of the features that each split chooses from.
    langevin
        Grow the trees by stochastic gradient Langevin boosting (``posterior_sampling``), which the virtual ensembles
        rest on.
    virtual_ensembles
        Parts of the trees whose disagreement is the uncertainty about the mean; 0 for none.
    seed
        Of the draws.
    """

    iterations: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    depth: int = Field(ge=1, le=12)
    l2_leaf_reg: float = Field(ge=0)
    subsample: float = Field(gt=0, le=1)
    rsm: float = Field(gt=0, le=1)
    langevin: bool = False
    virtual_ensembles: int = Field(ge=0)
    seed: int = Field(ge=0)
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _enough_trees(self) -> CatBoostConfig:
        if self.calibration.method == "temperature":
            raise ValueError("calibration.method temperature is for probabilities; use scale or none")
        if self.virtual_ensembles and self.iterations < 2 * self.virtual_ensembles:
            raise ValueError(
                f"iterations {self.iterations} are too few for {self.virtual_ensembles} virtual ensembles; "
                f"use at least {2 * self.virtual_ensembles}"
            )
        return self


class TFTConfig(Frozen):
    """Parameters of the Temporal Fusion Transformer.

    Parameters
    ----------
    horizon
        Bars over which the score is the return; ``targets.horizon``.
    decoder_steps
        Points of the path to the horizon that are learnt, evenly apart, the score the last; divides ``horizon``. With
        1 the score alone is learnt: a planted signal was found in a fraction of the steps that the whole path took.
    encoder_length
        Bars of the past that a forecast reads, its own included.
    hidden_size, hidden_continuous_size, attention_heads
        Widths of the network; heads divide ``hidden_size``, which exceeds ``hidden_continuous_size``.
    dropout
        Share of inputs that are left out in training.
    quantiles
        Levels that are learnt, ascending, at least three, the same above and below the median.
    max_features, max_correlation
        Features are chosen by their rank correlation with the score in the training rows, at most so many; one that
        correlates in rank with a chosen one by more than ``max_correlation`` is passed over.
    clip
        Scaled features are cut at plus and minus so many standard deviations.
    max_unknown
        A window with a greater share of missing bars neither trains nor forecasts.
    max_samples
        At most so many rows train and validate, the last ones.
    validation_share
        Of those, the latest ones, that decide when to stop; rows whose labels reach into them train nothing.
    batch_size, block
        Rows of a step, made of blocks of so many successive rows; ``block`` divides ``batch_size``.
    learning_rate, weight_decay, gradient_clip
        Of AdamW; the gradient's norm is cut at ``gradient_clip``.
    max_epochs, patience
        Passes over the rows at most, and how many without a better validation end it.
    device
        ``auto`` trains on a GPU where there is one; the bytes of a model are the same again on a CPU only.
    seed
        Of the first weights, the order of blocks and the dropout.
    """

    horizon: int = Field(default=12, ge=1)
    decoder_steps: int = Field(default=1, ge=1)
    encoder_length: int = Field(default=48, ge=1)
    hidden_size: int = Field(default=16, ge=4)
    hidden_continuous_size: int = Field(default=8, ge=2)
    attention_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], min_length=3
    )
    max_features: int = Field(default=32, ge=1)
    max_correlation: float = Field(default=0.95, gt=0, le=1)
    clip: float = Field(default=5.0, gt=0)
    max_unknown: float = Field(default=0.25, ge=0, lt=1)
    max_samples: int = Field(default=8000, ge=1)
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    batch_size: int = Field(default=128, ge=1)
    block: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=0.004, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    max_epochs: int = Field(default=8, ge=1)
    patience: int = Field(default=3, ge=1)
    device: Literal["cpu", "auto"] = "cpu"
    seed: int = 7

    @model_validator(mode="after")
    def _fits(self) -> TFTConfig:
        for name, whole, part in (
            ("decoder_steps", self.horizon, self.decoder_steps),
            ("attention_heads", self.hidden_size, self.attention_heads),
            ("block", self.batch_size, self.block),
        ):
            if whole % part:
                raise ValueError(f"{name} {part} does not divide {whole}")
        if self.hidden_continuous_size >= self.hidden_size:
            raise ValueError(
                f"hidden_continuous_size {self.hidden_continuous_size} is not less than hidden_size {self.hidden_size}"
            )
        levels = self.quantiles
        ascending = levels == sorted(set(levels))
        mirrored = all(abs(low + high - 1) < 1e-9 for low, high in zip(levels, reversed(levels), strict=True))
        if not (ascending and mirrored):
            raise ValueError(f"quantiles {levels} do not ascend, or are not the same above and below the median")
        return self


class RidgeConfig(Frozen):
    """The linear baseline.

    Parameters
    ----------
    penalty
        On the squared coefficients of the standardised features, per unit of weight: a feature that is uncorrelated
        with all others keeps ``1 / (1 + penalty)`` of its least-squares coefficient.
    seed
        For the version; nothing is drawn.
    """

    penalty: float = Field(gt=0)
    seed: int = 0


class MomentumConfig(Frozen):
    """The time-series momentum baseline.

    Parameters
    ----------
    signals
        Features whose sign is the sign of a trailing return; they must not be normalised, or their sign would be
        relative to their own past.
    strength
        Score, in barrier widths, that the rule claims where all signals agree.
    seed
        For the version; nothing is drawn.
    """

    signals: list[str] = Field(min_length=1)
    strength: float = Field(gt=0)
    seed: int = 0


class ConstantConfig(Frozen):
    """The forecast without any skill: the training frequencies.

    Parameters
    ----------
    seed
        For the version; nothing is drawn.
    """

    seed: int = 0


class ModelsConfig(Frozen):
    """``models.yaml``: feature sets, targets, the walk-forward split and the parameters of every model type."""

    features: FeatureConfig
    targets: TargetConfig
    walk_forward: WalkForwardConfig
    weights: WeightsConfig = WeightsConfig()
    lightgbm: LightGBMConfig
    catboost: CatBoostConfig
    tft: TFTConfig = TFTConfig()
    ridge: RidgeConfig
    momentum: MomentumConfig
    constant: ConstantConfig = ConstantConfig()
    meta: MetaConfig
    tuning: TuningConfig = TuningConfig()
    drift: DriftConfig = DriftConfig()

    @model_validator(mode="after")
    def _gap_covers_the_label(self) -> ModelsConfig:
        horizon = self.targets.horizon
        for name, calibration in (("lightgbm", self.lightgbm.calibration), ("catboost", self.catboost.calibration)):
            if calibration.method != "none" and calibration.gap_bars < horizon:
                raise ValueError(
                    f"{name}.calibration.gap_bars {calibration.gap_bars} is less than targets.horizon {horizon}: "
                    f"labels of the judged trees would reach into the rows that judge them; use at least {horizon}"
                )
        return self
