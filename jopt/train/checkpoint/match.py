"""Which saved leaf goes where: strict matching by path, with one report of all differences."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jopt.paths import Leaf, where
from jopt.train.checkpoint.errors import CheckpointError
from jopt.train.checkpoint.leaves import Record, Spec, dtype_named
from jopt.train.checkpoint.trees import Key, Keys

WIDE = ("int64", "uint64", "float64", "complex128")  # JAX narrows them where x64 is off
Migration = Mapping[str, str] | Callable[[str], str]


class Wanted(NamedTuple):
    """A leaf of `like`."""

    keys: Keys
    spec: Spec
    leaf: Any

    @property
    def path(self) -> str:
        return self.keys.path


def migrated(call: str, records: Sequence[Record], migrate: Migration | None) -> dict[str, Record]:
    """The saved leaves by the path they have now.

    Args:
        call: for messages.
        records: the saved leaves.
        migrate: old name to new name, or a function of the path.

    Raises:
        CheckpointError: two leaves end up with one path.
    """
    found: dict[str, Record] = {}
    for record in records:
        path = _renamed(record.path, migrate)
        if path in found:
            raise CheckpointError(
                f"{call}: migrate={migrate!r} gives the saved leaves {found[path].path!r} and {record.path!r} the one "
                f"path {path!r}; different ones were expected. Rename them apart."
            )
        found[path] = record
    return found


def _renamed(path: str, migrate: Migration | None) -> str:
    if migrate is None:
        return path
    if callable(migrate):
        return migrate(path)
    for old in sorted(migrate, key=len, reverse=True):  # the most specific first
        if path == old or path.startswith(old + "/"):
            return migrate[old] + path[len(old) :]
    return "/".join(_renamed_key(key, migrate) for key in path.split("/"))


def _renamed_key(key: str, migrate: Mapping[str, str]) -> str:
    """A state has names such as ``scale_by_adam/b1`` as single keys, with an escaped slash."""
    for old in sorted(migrate, key=len, reverse=True):
        name = _escaped(old)
        if key == name or key.startswith(name + "~1"):
            return _escaped(migrate[old]) + key[len(name) :]
    return key


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def match(
    call: str,
    saved: Mapping[str, Record],
    wanted: Sequence[Wanted],
    partial: Any,
    optional: Collection[str],
) -> dict[str, Record]:
    """What to take from the file, by path.

    Args:
        call: for messages.
        saved: the saved leaves by path.
        wanted: the leaves of `like`.
        partial: False: all of both sides; True: what both have; else `where` of the leaves to take.
        optional: paths that either side may lack.

    Raises:
        CheckpointError: one report of all that is missing, left over or different.
    """
    chosen = _chosen(call, wanted, partial)
    take = {w.path: saved[w.path] for w in wanted if w.path in saved and w.path in chosen}
    missing, left_over = {}, []
    if partial is not True:
        missing = {w.path: w for w in wanted if w.path in chosen and w.path not in take and w.path not in optional}
    if partial is False:
        left_over = [record for path, record in saved.items() if path not in take and path not in optional]
    different, x64 = [], False
    for w in wanted:
        if w.path in take:
            text, wide = _difference(take[w.path], w)
            different += [text] * bool(text)
            x64 |= wide
        elif isinstance(w.leaf, jax.ShapeDtypeStruct) and w.path not in missing:
            different.append(f"{_shown(w.path)}: it would keep the value of like, which has a shape only")
    if missing or left_over or different:
        raise CheckpointError(_report(call, list(missing.values()), left_over, different, x64))
    return take


def _chosen(call: str, wanted: Sequence[Wanted], partial: Any) -> set[str]:
    if isinstance(partial, bool):
        return {w.path for w in wanted}
    chooser = where(partial)
    chosen = {w.path for w in wanted if chooser(Leaf(w.path, w.spec.shape, _dtype(w.spec)))}
    if not chosen:
        raise CheckpointError(
            f"{call}: partial={partial!r} chooses no leaf of like, which has {[w.path for w in wanted][:8]}. "
            f"Choose some of them, or pass partial=True for all that both sides have."
        )
    return chosen


def _dtype(spec: Spec) -> Any:
    return dtype_named(spec.dtype) if spec.kind == "array" else np.dtype(object)


def _difference(record: Record, w: Wanted) -> tuple[str, bool]:
    """What keeps a saved leaf from its place (empty if nothing), and whether x64 would help."""
    spec = record.spec
    needs_x64 = (
        isinstance(w.leaf, jax.Array | jax.ShapeDtypeStruct)
        and spec.dtype in WIDE
        and jax.dtypes.canonicalize_dtype(spec.dtype) != spec.dtype
    )
    if spec != w.spec:
        return f"{_shown(w.path)}: {spec} in the file, {w.spec} in like", needs_x64
    if needs_x64:
        return f"{_shown(w.path)}: {spec} needs x64", True
    if record.path == w.path and record.keys.kinds != w.keys.kinds:
        pairs = zip(record.keys.kinds, w.keys.kinds, record.keys, w.keys, strict=False)
        old, new = next((old, new) for kind, other, old, new in pairs if kind != other)
        return f"{w.path}: {_step(old)} in the file, {_step(new)} in like", False
    return "", False


def _step(key: Key) -> str:
    return f"{key.kind} {key.name!r}" + {"key": " of a dict", "list": " (an index)", "tuple": " (an index)"}.get(
        key.kind, ""
    )


def _shown(path: str) -> str:
    return path or "(the bare array)"


def _report(call: str, missing: Any, left_over: Any, different: list[str], x64: bool) -> str:
    lines = [f"{call}: the file does not fit `like`; the same leaves were expected, as nothing is cast or padded."]
    for title, found in (("missing in the file", missing), ("left over in the file", left_over)):
        if found:
            lines += [f"  {title}:"] + [f"    {_shown(x.path)}  {x.spec}" for x in found]
    if different:
        lines += ["  different:"] + [f"    {text}" for text in different]
    if x64:
        lines.append("Turn on x64 for the 64-bit arrays: jax.config.update('jax_enable_x64', True).")
    if missing or left_over:
        lines.append(
            "Pass migrate={'old name': 'new name'} for what was renamed, or partial=True (or a glob of what to take) "
            "to keep the values of `like` for the rest."
        )
    elif not x64:
        lines.append("Build `like` as it was saved, or pass partial= with a glob that leaves these out.")
    return "\n".join(lines)
