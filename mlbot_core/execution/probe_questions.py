"""What a question of a probe is, and how the questions are put one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import InvalidOperation
from typing import Generic, TypeVar

from mlbot_core.errors import MlbotError
from mlbot_core.execution.probe_http import Heard
from mlbot_core.execution.probe_report import Item, Verdict

C = TypeVar("C")


@dataclass(frozen=True)
class Found:
    """What was asked, what came back, and what that means."""

    asked: str
    answer: str
    verdict: Verdict


@dataclass(frozen=True)
class Question(Generic[C]):
    """One open point of a reference.

    Parameters
    ----------
    name
        Stable.
    text
        The question.
    ask
        Asks it; may fail where the answer has another shape, which counts as unknown.
    matters
        Whether trading rests on the answer.
    """

    name: str
    text: str
    ask: Callable[[C], Found]
    matters: bool = False


def put(
    questions: Iterable[Question[C]], context: C, scrub: Callable[[str], str], progress: Callable[[str], None]
) -> list[Item]:
    """Put questions one after the other; each leaves an item, whatever comes back.

    Parameters
    ----------
    scrub
        Takes out whatever must not be told.
    progress
        Is told the name of each before it is asked.
    """
    items = []
    for question in questions:
        progress(question.name)
        try:
            found = question.ask(context)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, InvalidOperation, ZeroDivisionError) as e:
            found = Found("", f"the answer has another shape than documented ({type(e).__name__})", "unknown")
        except MlbotError as error:
            found = Found("", str(error), "unknown")
        items.append(
            Item(
                question.name,
                question.text,
                scrub(found.asked),
                scrub(found.answer),
                found.verdict,
                question.matters,
            )
        )
    return items


def told(heard: Heard, answer: str, *, expected: bool | None) -> Found:
    """Return what a good answer means; ``expected`` None: it does not tell."""
    if not heard.good:
        return Found(heard.asked, heard.refusal, "unknown")
    return Found(heard.asked, answer, "unknown" if expected is None else "as_expected" if expected else "differs")
