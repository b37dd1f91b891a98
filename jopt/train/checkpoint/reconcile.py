"""Hyper-parameters at load, three-way: the script then, the script now, and what the state used."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jopt.train.checkpoint.errors import CheckpointError

CHOICES = (None, "state", "transform")


class Number(NamedTuple):
    """One hyper-parameter on both sides; None where it followed (follows) a schedule.

    Attributes:
        name: its full name.
        path: of its live value in `like`, and of its configured value.
        live: in the file: used in the last update.
        then: in the file: as the script configured it then.
        now: in `like`: as the script configures it now.
    """

    name: str
    path: tuple[str, str]
    live: np.ndarray
    then: np.ndarray | None
    now: np.ndarray | None


def number_paths(prefix: str, paths: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The live and the configured path of each hyper-parameter of the state at `prefix`, by name."""
    start = f"{prefix}/" if prefix else ""
    live, configured = f"{start}hyper/", f"{start}base/"
    names = [path.removeprefix(live) for path in paths if path.startswith(live)]
    return {name.replace("~1", "/").replace("~0", "~"): (live + name, configured + name) for name in names}


def reconcile(call: str, numbers: Sequence[Number], choice: str | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """The values that the hyper-parameters get, by path, and a line for each that changes.

    If the script changed a number, the script wins. If only `set_hyperparams` changed it, the state
    wins. If both did, `choice` decides. Values compare in their arrays' dtype, each lane of a batch
    for itself.

    Args:
        call: for messages.
        numbers: all of them.
        choice: None, or who wins wherever they differ: "state" or "transform".

    Raises:
        CheckpointError: both changed a number, and `choice` is None.
    """
    values: dict[str, np.ndarray] = {}
    lines, conflicts = [], []
    for number in numbers:
        if number.now is None:
            fault = _to_schedule(number, choice)
            conflicts += [fault] * bool(fault)
            lines.append(f"{number.name}: {_text(number.then)} -> a schedule")
            continue
        live, fault = _live(number, number.now, choice)
        conflicts += [fault] * bool(fault)
        if not np.array_equal(live, number.live):
            before = "a schedule" if number.then is None else _text(number.live)
            lines.append(f"{number.name}: {before} -> {_text(live)}")
        # With the script's numbers as those last seen, the next update takes none of them for news.
        values |= dict(zip(number.path, (live, number.now), strict=True))
    if conflicts:
        listing = "\n".join(f"  {text}" for text in conflicts)
        raise CheckpointError(
            f"{call}: hyperparams={choice!r} does not decide these numbers, which changed in the script and in the "
            f"saved state:\n{listing}\n"
            f'Pass hyperparams="transform" for the numbers of the script, or "state" for those of the file.'
        )
    return values, lines


def _live(number: Number, now: np.ndarray, choice: str | None) -> tuple[np.ndarray, str]:
    """The live value, and what is undecided."""
    if choice == "state":
        return number.live, ""
    if choice == "transform" or number.then is None:
        return now, ""
    news, by_hand = now != number.then, number.live != number.then
    if np.any(news & by_hand & (now != number.live)):
        return number.live, (
            f"{number.name}: {_text(number.then)} when the run began, {_text(now)} in the script, "
            f"{_text(number.live)} in the state"
        )
    return np.where(news, now, number.live), ""


def _to_schedule(number: Number, choice: str | None) -> str:
    """What is undecided where a schedule takes the place of a number: a state cannot hold it against one."""
    by_hand = choice is None and np.any(number.live != number.then)
    if choice == "state" or by_hand:
        return f"{number.name}: {_text(number.live)} in the state, a schedule in the script"
    return ""


def schedule_lines(saved: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """A line for each schedule that the script configures in another way than before."""
    both = saved.keys() & now.keys()
    return [f"{name}: {saved[name]} -> {now[name]}" for name in now if name in both and saved[name] != now[name]]


def announce(call: str, lines: Sequence[str]) -> None:
    """One printed line of all that the script changed."""
    if lines:
        print(f"{call}: as the script says now, {'; '.join(lines)}")


def _text(value: np.ndarray | None) -> str:
    if value is None:
        return "a schedule"
    return str(value[()]) if value.ndim == 0 else np.array2string(value, threshold=6, separator=", ")
