"""Validated, frozen configuration: YAML files plus the environment, secrets kept secret."""

from mlbot_core.config.execution import ExecutionConfig, OrdersConfig, WatchConfig
from mlbot_core.config.features import BarrierConfig, DriftConfig, FeatureConfig, FeatureSetConfig, TargetConfig
from mlbot_core.config.models import (
    CalibrationConfig,
    CatBoostConfig,
    ConstantConfig,
    LightGBMConfig,
    MetaConfig,
    ModelsConfig,
    MomentumConfig,
    RidgeConfig,
    TFTConfig,
    WalkForwardConfig,
    WeightsConfig,
)
from mlbot_core.config.quality import QualityConfig
from mlbot_core.config.secrets import ApiKeys, load_api_keys
from mlbot_core.config.settings import (
    EmulatorConfig,
    FeesConfig,
    IntervalsConfig,
    RiskConfig,
    Settings,
    load_settings,
)

__all__ = [
    "ApiKeys",
    "BarrierConfig",
    "CalibrationConfig",
    "CatBoostConfig",
    "ConstantConfig",
    "DriftConfig",
    "EmulatorConfig",
    "ExecutionConfig",
    "FeatureConfig",
    "FeatureSetConfig",
    "FeesConfig",
    "IntervalsConfig",
    "LightGBMConfig",
    "MetaConfig",
    "ModelsConfig",
    "MomentumConfig",
    "OrdersConfig",
    "QualityConfig",
    "RidgeConfig",
    "RiskConfig",
    "Settings",
    "TFTConfig",
    "TargetConfig",
    "WalkForwardConfig",
    "WatchConfig",
    "WeightsConfig",
    "load_api_keys",
    "load_settings",
]
