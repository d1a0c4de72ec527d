"""The second place where a ledger's heads are kept: a small append-only file a namespace, outside the store.

A chain whose last rows are cut off is still a sound chain, and whoever can delete rows can also correct the store's own
head. So after each append the new head is added, fsynced, to ``<folder>/<namespace>.heads``; a later read demands that
the chain still holds every head in it. Reports and stored verdicts name the head they were made with: a third place.

The line is written after the row is committed. A crash between the two leaves the file behind the store, which is no
offence; the next append catches up. The file exists, with the empty head, before the first row can be committed: rows
without a file mean that the file was removed. Only where machines share a store may rows come first: a machine that is
new to it begins a file of its own with what it finds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mlbot_core.validation.trials_chain import GENESIS, Head, LedgerTamperedError

_SUFFIX: Final = ".heads"


class HeadFile:
    """Heads of one namespace, oldest first. Callers hold the ledger's lock when they write.

    Parameters
    ----------
    folder
        Where the files lie; created on first use.
    namespace
        Which chain.
    """

    def __init__(self, folder: Path, namespace: str) -> None:
        self.path = folder / f"{namespace}{_SUFFIX}"
        self._namespace = namespace

    def exists(self) -> bool:
        """Return whether anything was ever recorded."""
        return self.path.exists()

    def read(self) -> list[Head]:
        """Return every recorded head; none where there is no file.

        A last line without its end is a write that a crash cut short: it never counted.

        Raises
        ------
        LedgerTamperedError
            If a whole line is not a head.
        """
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="ascii", errors="replace")
        heads = []
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            count, _, digest = line.partition(" ")
            if not count.isdigit() or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise LedgerTamperedError(
                    f"line {number} of {self.path} is not a ledger head ({line[:20]!r}...); restore the file from a "
                    "backup: it proves that no trial was un-counted"
                )
            heads.append(Head(self._namespace, int(count), digest))
        return heads

    def begin(self) -> None:
        """Make the file with the empty head, if there is none."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(Head(self._namespace, 0, GENESIS))
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def record(self, head: Head) -> None:
        """Add a head, durably, unless it is the last one already."""
        known = self.read()
        if not known or known[-1] != head:
            self._append(head)

    def _append(self, head: Head) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._drop_torn_line(descriptor)
            os.write(descriptor, f"{head.count} {head.hash}\n".encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _drop_torn_line(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, min(size, 128), max(0, size - 128))
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(descriptor, size - (len(tail) - (tail.rfind(b"\n") + 1)))
