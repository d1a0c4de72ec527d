"""The paper exchange: the emulator's matching on Bybit's live public prices, with an account that outlives its process.

``python -m mlbot_core.emulator.paper --folder DIR`` serves Bybit's private v5 endpoints on loopback. Prices are looked
at all the time, and once more after an order has arrived and before it meets the book: an order only ever trades on
prices that were observed after it came. While Bybit does not answer, or answers with old prices, nothing trades.
"""
