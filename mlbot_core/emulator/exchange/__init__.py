"""Bybit's trading side: accounts, matching, settlement, private endpoints and streams, faults.

:class:`Exchange` answers requests in process; :class:`mlbot_core.emulator.EmulatorServer` serves it over sockets.
"""

from mlbot_core.emulator.exchange.auth import EMULATOR_UID, ApiKey
from mlbot_core.emulator.exchange.exchange import Exchange
from mlbot_core.emulator.exchange.feed import PathFeed, Point, SyntheticFeed
from mlbot_core.emulator.exchange.options import DEFAULT_TRADE_KEY, DEFAULT_TRADE_SECRET, Answer, ExchangeOptions
from mlbot_core.emulator.exchange.trade_faults import TradeFault, TradeFaultSchedule, random_schedule

__all__ = [
    "DEFAULT_TRADE_KEY",
    "DEFAULT_TRADE_SECRET",
    "EMULATOR_UID",
    "Answer",
    "ApiKey",
    "Exchange",
    "ExchangeOptions",
    "PathFeed",
    "Point",
    "SyntheticFeed",
    "TradeFault",
    "TradeFaultSchedule",
    "random_schedule",
]
