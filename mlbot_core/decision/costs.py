"""What a trade costs, as fractions of the traded value."""

from __future__ import annotations

from dataclasses import dataclass

from mlbot_core.config import FeesConfig

_BP = 1e-4


@dataclass(frozen=True)
class Costs:
    """Costs of one venue.

    Parameters
    ----------
    taker, maker
        Fee as a fraction of the traded value (0.00055 = 5.5 bp); a negative maker fee is a rebate.
    slippage
        Expected distance of a market order's fill from the mid, as a fraction of the price.
    """

    taker: float
    maker: float
    slippage: float

    @property
    def side(self) -> float:
        """Taking once: fee plus slippage, fraction of the traded value."""
        return self.taker + self.slippage

    @property
    def round_trip(self) -> float:
        """Taking in and taking out again, fraction of the position's value."""
        return 2.0 * self.side


def costs_from_fees(fees: FeesConfig) -> Costs:
    """Return the costs of ``fees.yaml``, basis points turned into fractions."""
    return Costs(taker=fees.taker_bp * _BP, maker=fees.maker_bp * _BP, slippage=fees.slippage_bp * _BP)
