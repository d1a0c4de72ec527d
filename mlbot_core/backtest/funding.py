"""Funding payments of a period, from what is stored."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from mlbot_core.timeframe import HOUR_MS
from mlbot_core.warehouse.inputs import MarketInputs

SETTLEMENT_MS: Final = 8 * HOUR_MS


def funding_of(inputs: MarketInputs) -> tuple[pd.DataFrame, str]:
    """Return settlements (``ts`` UTC ms, ``rate`` fraction; longs pay a positive one) and a note on their origin.

    Settled rates where they are recorded; else the running OI-weighted rate at the close of the bar that ends at
    00:00, 08:00 or 16:00 UTC, which is the last estimate before the exchange settles.
    """
    recorded = inputs.settled.get("funding_settled")
    if recorded is not None and recorded.table.num_rows:
        frame = recorded.table.select(["ts", "rate"]).to_pandas().dropna().reset_index(drop=True)
        return frame, "Funding: settled rates as recorded."
    running = inputs.settled.get("funding_rate")
    if running is None or running.table.num_rows == 0 or SETTLEMENT_MS % running.timeframe.ms:
        return pd.DataFrame({"ts": np.array([], np.int64), "rate": np.array([], float)}), "Funding: none is stored."
    frame = running.table.select(["ts", "close"]).to_pandas().dropna()
    frame = pd.DataFrame({"ts": frame["ts"] + running.timeframe.ms, "rate": frame["close"]})
    frame = frame.loc[frame["ts"] % SETTLEMENT_MS == 0].reset_index(drop=True)
    return (
        frame,
        "Funding: no settled rate is recorded; the running OI-weighted rate at 00:00, 08:00, 16:00 UTC is paid.",
    )
