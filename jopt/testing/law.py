"""What a law is: a named check over a `Subject`, and the list of all of them."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jopt.testing.subject import Subject


class NotApplicableError(Exception):
    """A law cannot be checked here, or says nothing about this transform; the message says why."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A sentence about transforms, and its check.

    Args:
        name: as `check_transform` takes and reports it.
        sentence: what holds.
        check: raises where it does not.
        applies: whether it says something about a subject.
        otherwise: why it does not.
    """

    name: str
    sentence: str
    check: Callable[["Subject"], None]
    applies: Callable[["Subject"], bool]
    otherwise: str

    def __call__(self, subject: "Subject") -> None:
        """Check it.

        Raises:
            AssertionError: it does not hold; whatever the check raised is the cause.
            NotApplicableError: it cannot be checked.
        """
        if not self.applies(subject):
            raise NotApplicableError(self.otherwise)
        try:
            self.check(subject)
        except NotApplicableError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(
                f"check_transform({subject.tx!r}): the law {self.name!r} does not hold.\n"
                f"Expected: {self.sentence}\nFound: {kind}{error}"
            ) from error


LAWS: dict[str, Law] = {}
"""Every law by name, in the order `check_transform` runs them."""


def law(check: Callable[["Subject"], None]) -> Law:
    """Enter a check into `LAWS`, under its name and with the first line of its docstring as the sentence."""
    return law_if(lambda subject: True, "")(check)


def law_if(applies: Callable[["Subject"], bool], otherwise: str) -> Callable[[Callable[["Subject"], None]], Law]:
    """The same for a law about some transforms only; `otherwise` says why it is left out for others."""

    def enter(check: Callable[["Subject"], None]) -> Law:
        sentence = (check.__doc__ or "").strip().splitlines()[0]
        LAWS[check.__name__] = Law(check.__name__, sentence, check, applies, otherwise)
        return LAWS[check.__name__]

    return enter
