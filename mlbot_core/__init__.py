"""mlbot's core: point-in-time market data, features, targets, validation, models, decision and backtest.

A plain library. It knows nothing of Dagster; the package ``mlbot_dagster`` puts it into assets and jobs.
"""

__version__ = "0.1.0"
