"""What a training changes of the process, and puts back: torch's flags, threads and random state, logs, signals."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final

# Flags, random state and signal handlers of torch and Lightning belong to the process: one training at a time.
ONE_AT_A_TIME: Final = threading.Lock()

_EXPECTED_WARNINGS: Final = (
    # the loss and metrics that pytorch-forecasting stores beside its parameters, although they are modules
    r"Attribute '(loss|logging_metrics)' is an instance of `nn\.Module` and is already saved during checkpointing",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's way with this release of torch
    r"GPU available but not used",  # as tft.device says
    r".*does not have a deterministic implementation",  # on a GPU only, and said of tft.device
)


@contextlib.contextmanager
def interruptible(best: Any) -> Iterator[None]:
    """Let a KeyboardInterrupt through: Lightning turns it into an exit and leaves the signal ignored.

    Parameters
    ----------
    best
        Lightning's callback, whose ``interrupted`` says why the training ended.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not best.interrupted:
            raise
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's tips and expected warnings to itself."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_forecasting")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        import lightning.pytorch  # noqa: F401 - sets its loggers' levels when it is imported first

        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def torch_state(cuda: bool) -> Iterator[None]:
    """Deterministic and on one thread inside; the process as it was afterwards, random state included."""
    import torch

    threads = torch.get_num_threads()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    guard: Any = torch.utils.deterministic
    fill = guard.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        try:
            torch.set_num_threads(1)
            guard.fill_uninitialized_memory = False  # a guard for kernels under test, and slow
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warn)
            guard.fill_uninitialized_memory = fill
            torch.backends.cudnn.benchmark = benchmark
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            if workspace is not None:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
