"""A local stand-in for Coinglass and Bybit: real HTTP on loopback over a seeded synthetic market, with faults.

Bybit's trading side is :mod:`mlbot_core.emulator.exchange`; it also works in process, without sockets.

It shares no code with the clients that talk to it (an import contract says so): agreement has to mean something.
"""

from mlbot_core.emulator.coinglass import DEFAULT_KEY, CoinglassOptions
from mlbot_core.emulator.faults import Fault, FaultSchedule
from mlbot_core.emulator.market import Bars, SyntheticMarket
from mlbot_core.emulator.server import EmulatorError, EmulatorServer

__all__ = [
    "DEFAULT_KEY",
    "Bars",
    "CoinglassOptions",
    "EmulatorError",
    "EmulatorServer",
    "Fault",
    "FaultSchedule",
    "SyntheticMarket",
]
