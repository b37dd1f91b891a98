"""What a law is: a named check over a `Subject`, and the list of all of them."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from jopt.testing.subject import Subject

Law: TypeAlias = "Callable[[Subject], None]"

LAWS: dict[str, Law] = {}
"""Every law by name, in the order `check_transform` runs them."""


class NotApplicableError(Exception):
    """A law says nothing about this transform, or cannot be run here; the message says why."""


def law(check: Law) -> Law:
    """Enter a check into `LAWS`; whatever it raises becomes an `AssertionError` that names it."""
    name = check.__name__
    sentence = (check.__doc__ or "").strip().splitlines()[0]

    @functools.wraps(check)
    def run(subject: "Subject") -> None:
        try:
            check(subject)
        except NotApplicableError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(
                f"check_transform({subject.tx!r}): the law {name!r} does not hold.\n"
                f"Expected: {sentence}\nFound: {kind}{error}"
            ) from error

    LAWS[name] = run
    return run
