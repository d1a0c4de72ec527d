"""Where market data comes from: one protocol, four implementations, all yielding the same typed frames."""

from mlbot_core.sources.base import Served, Source, fetch_many
from mlbot_core.sources.factory import open_source

__all__ = ["Served", "Source", "fetch_many", "open_source"]
