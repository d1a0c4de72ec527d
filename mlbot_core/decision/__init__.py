"""From forecasts to target positions: costs and sizing."""

from mlbot_core.decision.costs import Costs, costs_from_fees
from mlbot_core.decision.sizing import next_side, target_positions

__all__ = ["Costs", "costs_from_fees", "next_side", "target_positions"]
