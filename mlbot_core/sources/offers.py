"""Which source has which series, without opening any."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlbot_core.sources.archive import ArchiveSource, VintageArchiveSource
from mlbot_core.sources.bybit import BybitSource
from mlbot_core.sources.coinglass import CoinglassSource


def offered() -> Mapping[str, frozenset[str]]:
    """Return the series of each kind of source; a plan, a coin or a timeframe may still lack one."""
    return MappingProxyType(
        {
            "coinglass": CoinglassSource.offers(),
            "emulator": CoinglassSource.offers(),
            "bybit": BybitSource.offers(),
            ArchiveSource.name: ArchiveSource.offers(),
            VintageArchiveSource.name: VintageArchiveSource.offers(),
        }
    )
