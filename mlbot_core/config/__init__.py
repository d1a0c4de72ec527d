"""Validated, frozen configuration: YAML files plus the environment, secrets kept secret."""

from mlbot_core.config.features import BarrierConfig, DriftConfig, FeatureConfig, FeatureSetConfig, TargetConfig
from mlbot_core.config.quality import QualityConfig
from mlbot_core.config.secrets import ApiKeys, load_api_keys
from mlbot_core.config.settings import (
    EmulatorConfig,
    FeesConfig,
    IntervalsConfig,
    LightGBMConfig,
    ModelsConfig,
    RiskConfig,
    Settings,
    WalkForwardConfig,
    load_settings,
)

__all__ = [
    "ApiKeys",
    "BarrierConfig",
    "DriftConfig",
    "EmulatorConfig",
    "FeatureConfig",
    "FeatureSetConfig",
    "FeesConfig",
    "IntervalsConfig",
    "LightGBMConfig",
    "ModelsConfig",
    "QualityConfig",
    "RiskConfig",
    "Settings",
    "TargetConfig",
    "WalkForwardConfig",
    "load_api_keys",
    "load_settings",
]
