"""What happens while a market is open: the newest bar's forecasts, the decision on it, its execution."""

from typing import Final

LIVE_VARIABLE: Final = "MLBOT_LIVE"
"""Where it is ``1``, the sensors that trade are on from the start; nothing else turns them on by itself."""
