"""Dagster's console logger, which also tells whoever launched the run in this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster import colored_console_logger

_LISTENERS: list[logging.Handler] = []


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Hand every record of the runs of this process to ``handler`` for the length of a ``with`` block."""
    _LISTENERS.append(handler)
    try:
        yield
    finally:
        _LISTENERS.remove(handler)


@dg.logger(description="Coloured console output, at INFO.", config_schema={})
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the console logger with the listeners of this process attached."""
    # events come at DEBUG: the logger lets them through to the listeners, the console shows INFO and above
    inner = dg.build_init_logger_context(
        logger_config={"log_level": "DEBUG", "name": "dagster"}, job_def=context.job_def
    )
    logger: logging.Logger = colored_console_logger(inner)
    for handler in logger.handlers:
        handler.setLevel(logging.INFO)
    for handler in _LISTENERS:
        logger.addHandler(handler)
    return logger
