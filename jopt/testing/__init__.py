"""The laws every transform keeps, for testing one's own: `check_transform`."""

from collections.abc import Iterable
from typing import Any

from jopt.testing import chain_laws, identity_laws, mesh_laws, number_laws, run_laws, tree_laws, type_laws  # noqa: F401
from jopt.testing.law import LAWS, Law, NotApplicableError
from jopt.testing.subject import Subject

__all__ = ["LAWS", "Law", "NotApplicableError", "Subject", "check_transform"]


def check_transform(tx: Any, *, laws: Iterable[str] | None = None, **declared: Any) -> dict[str, str]:
    """Check that a transform keeps the laws; for your own rules, in your own tests.

    Args:
        tx: the transform.
        laws: names from `LAWS`; None checks all of them.
        **declared: exceptions and data, as `jopt.testing.Subject` lists them:
            ``zero_gradient=False``, ``complex=None``, ``extra={"value": 1.0}``, ``params=...``.

    Returns:
        The laws that were not checked, with the reason.

    Raises:
        AssertionError: a law does not hold; the message names it, what was found and what was expected.
        ValueError: there is no law of such a name.
    """
    names = list(LAWS) if laws is None else list(laws)
    unknown = sorted(set(names) - LAWS.keys())
    if unknown:
        raise ValueError(f"check_transform: laws={unknown} were given, names among {list(LAWS)} were expected.")
    subject = Subject(tx, **declared)
    left_out = {}
    for name in names:
        try:
            LAWS[name](subject)
        except NotApplicableError as reason:
            left_out[name] = str(reason)
    return left_out
