"""Named feature sets: from a few words in ``config/models.yaml`` to a checked, ordered, hashed list of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Final

from mlbot_core.config import FeatureConfig, FeatureSetConfig, load_settings
from mlbot_core.errors import ConfigError, UsageError
from mlbot_core.features.registry import Feature, FeatureSet, all_features, make_feature_set

ALL_FAMILIES: Final = "all"


def configured_set(config: FeatureConfig, name: str | None = None) -> FeatureSet:
    """Return the feature set that a configuration chooses, or another of its named sets.

    Raises
    ------
    ConfigError
        If a definition names a family or feature that does not exist; every such name is listed.
    UsageError
        If there is no set of that name.
    """
    return feature_set(name or config.set, config.zscore_window, config.sets or None)


def feature_set(name: str, zscore_window: int, sets: Mapping[str, FeatureSetConfig] | None = None) -> FeatureSet:
    """Return the named feature set.

    Parameters
    ----------
    name
        One of ``sets``.
    zscore_window
        Bars of the trailing window of every normalisation, at least 2.
    sets
        Definitions by name; by default those of ``config/models.yaml``.

    Raises
    ------
    ConfigError
        If a definition names a family or feature that does not exist; every such name is listed.
    UsageError
        If there is no set of that name or the window is too short.
    """
    known = load_settings().models.features.sets if sets is None else sets
    check_sets(known)
    if name not in known:
        raise UsageError(f"feature set {name!r} is unknown; choose one of {', '.join(sorted(known))}")
    if zscore_window < 2:
        raise UsageError(f"a z-score over {zscore_window} bars has no deviation; use at least 2")
    return _make(name, known[name], zscore_window)


def families() -> tuple[str, ...]:
    """Return the names of the families, in the order of their declaration."""
    return tuple(dict.fromkeys(feature.family for feature in all_features()))


def check_sets(sets: Mapping[str, FeatureSetConfig]) -> None:
    """Refuse definitions that name what does not exist.

    Raises
    ------
    ConfigError
        Listing every problem of every set.
    """
    problems = [problem for name, definition in sets.items() for problem in _problems(name, definition)]
    if problems:
        raise ConfigError(
            f"features.sets of config/models.yaml: {'; '.join(problems)}; "
            f"families are {', '.join(families())}, and `mlbot features list` shows the features"
        )


def _problems(name: str, definition: FeatureSetConfig) -> list[str]:
    every = {feature.name for feature in all_features()}
    found = [
        f"{name}: there is no family {family!r}"
        for family in definition.families
        if family not in {ALL_FAMILIES, *families()}
    ]
    for field, names in (("include", definition.include), ("exclude", definition.exclude)):
        found += [f"{name}: {field} names {one!r}, which is no feature" for one in names if one not in every]
    found += [
        f"{name}: {one!r} is both included and excluded" for one in set(definition.include) & {*definition.exclude}
    ]
    if not found and not _members(definition):
        found.append(f"{name}: it holds no feature")
    return found


def _members(definition: FeatureSetConfig) -> tuple[Feature, ...]:
    """Return the features of a definition in the order of their declaration."""
    wanted = set(definition.families)
    chosen = (
        feature
        for feature in all_features()
        if (ALL_FAMILIES in wanted or feature.family in wanted or feature.name in definition.include)
        and feature.name not in definition.exclude
    )
    if definition.normalise == "zscore":
        return tuple(chosen)
    scaling = definition.normalise
    return tuple(replace(one, normalise=scaling) if one.normalise == "zscore" else one for one in chosen)


@cache
def _make(name: str, definition: FeatureSetConfig, zscore_window: int) -> FeatureSet:
    return make_feature_set(name, _members(definition), zscore_window)
