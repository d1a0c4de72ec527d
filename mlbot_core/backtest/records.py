"""The arrays that the simulator's loop fills, and what writes their rows."""

from __future__ import annotations

from typing import Any, Final

from numba import njit

# Rows of the array of bars.
NAV, NAV_LOW, POSITION, GROSS, FEES, SLIPPAGE, FUNDING, LEVEL = range(8)
BAR_ROWS: Final = 8
# Columns of a fill: bar, side, coins, price, mid, fee, slippage, reason, NAV at the decision, position after, maker.
FILL_COLUMNS: Final = 11
MAKER: Final = 10


@njit(cache=True)
def write_fill(
    row: Any,
    bars: Any,
    bar: int,
    amount: float,
    price: float,
    mid: float,
    fee: float,
    lost: float,
    reason: int,
    nav: float,
    after: float,
) -> None:
    """Write one fill of signed coins, and its costs into its bar."""
    row[0] = bar
    row[1] = 1.0 if amount > 0 else -1.0
    row[2] = abs(amount)
    row[3] = price
    row[4] = mid
    row[5] = fee
    row[6] = lost
    row[7] = reason
    row[8] = nav
    row[9] = after
    row[MAKER] = 0.0
    bars[FEES, bar] += fee
    bars[SLIPPAGE, bar] += lost


@njit(cache=True)
def write_payment(row: Any, bars: Any, bar: int, held: float, price: float, rate: float, payment: float) -> None:
    """Write one settlement: signed coins, mark price, rate, USD paid."""
    row[0] = held
    row[1] = price
    row[2] = rate
    row[3] = payment
    bars[FUNDING, bar] += payment


@njit(cache=True)
def write_change(row: Any, ts: int, bar: int, before: int, after: int) -> int:
    """Note causes that came and went; return 1 if any did."""
    if before == after:
        return 0
    row[0] = ts
    row[1] = bar
    row[2] = after & ~before
    row[3] = before & ~after
    return 1
