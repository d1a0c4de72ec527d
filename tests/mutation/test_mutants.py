"""Mutants are small, compile, keep their lines, and leave alone what no test could or should notice."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutants import compiled, mutants_of, mutated

SOURCE = '''
"""Text."""
import logging
import os
LIMIT: int = 3


class Guard:
    """More text."""

    def allows(self, size: float, held: float = 0.0) -> bool:
        """Return whether it does."""
        if size <= LIMIT and not self.halted:
            return True
        logging.warning("refused %s", size + 1)
        os.kill(1, 0)
        raise ValueError(f"{size} is above {LIMIT + 1}")

    def __repr__(self) -> str:
        return "Guard"
'''


def changes() -> list[str]:
    return [mutant.change for mutant in mutants_of(SOURCE, "guard.py")]


def test_what_is_changed_and_what_is_not() -> None:
    assert changes() == [
        "3 -> 4",
        "3 -> 2",
        "0.0 -> 1.0",
        "if size <= LIMIT and (not self.halted): return True -> "
        "if not (size <= LIMIT and (not self.halted)): return True",
        "size <= LIMIT and (not self.halted) -> size <= LIMIT or not self.halted",
        "size <= LIMIT -> size < LIMIT",
        "not self.halted -> self.halted",
        "return True -> return None",
        "True -> False",
        "raise ValueError(f'{size} is above {LIMIT + 1}') -> pass",
    ]


def test_each_mutant_compiles_keeps_its_lines_and_is_another_program() -> None:
    found = mutants_of(SOURCE, "guard.py")
    assert len({mutant.key for mutant in found}) == len(found)
    texts = {mutated(SOURCE, mutant) for mutant in found}
    assert len(texts) == len(found)
    original = {(code.co_qualname, code.co_firstlineno) for code in functions(compile(SOURCE, "guard.py", "exec"))}
    for mutant in found:
        code = compiled(SOURCE, mutant, Path("guard.py"))
        assert {(one.co_qualname, one.co_firstlineno) for one in functions(code)} == original
        assert SOURCE.splitlines()[mutant.line - 1].strip()


def test_a_default_belongs_to_where_the_function_is_made() -> None:
    by_change = {mutant.change: mutant.function for mutant in mutants_of(SOURCE, "guard.py")}
    assert by_change["0.0 -> 1.0"] == ""
    assert by_change["True -> False"] == "Guard.allows"


def functions(code: object) -> list[object]:
    inner = [one for one in code.co_consts if hasattr(one, "co_qualname")]
    return [code, *(found for one in inner for found in functions(one))]
