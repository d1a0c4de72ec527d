"""Validated, frozen configuration: YAML files plus the environment, secrets kept secret."""

from mlbot_core.config.secrets import ApiKeys, load_api_keys
from mlbot_core.config.settings import (
    EmulatorConfig,
    FeatureConfig,
    FeesConfig,
    IntervalsConfig,
    LightGBMConfig,
    ModelsConfig,
    QualityConfig,
    RiskConfig,
    Settings,
    TargetConfig,
    WalkForwardConfig,
    load_settings,
)

__all__ = [
    "ApiKeys",
    "EmulatorConfig",
    "FeatureConfig",
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
