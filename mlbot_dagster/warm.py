"""What a warm process of runs has imported before the first bar closes. Importing this module is its whole work.

Nothing here may start a thread: processes are forked from the one that imports it.
"""

import catboost  # noqa: F401
import lightgbm  # noqa: F401
import numba  # noqa: F401
import pandas  # noqa: F401
import pyarrow  # noqa: F401
import pybit.unified_trading  # noqa: F401
import requests  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401

import mlbot_core.execution.bybit
import mlbot_core.features.build  # noqa: F401
import mlbot_dagster.definitions  # noqa: F401
