"""The ``mlbot`` command. It checks what was asked, launches assets, and shows what came of it."""
