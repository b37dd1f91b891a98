"""Save a tree to one file, and load it back bit for bit: `save`, `load`, `read_meta`."""

import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jopt import scalars
from jopt.engine import Parts, walk
from jopt.train.checkpoint import archive, leaves, reconcile, storage, strict_json, trees
from jopt.train.checkpoint.errors import CheckpointError, damaged
from jopt.train.checkpoint.leaves import Record
from jopt.train.checkpoint.match import Migration, Wanted, match, migrated
from jopt.train.checkpoint.trees import Keys
from jopt.transform import Transform, as_transform

FORMAT = 1
OVERHEAD = 1024
"""Bytes that a leaf needs beside its values, at most in the mean: headers, and its part of the manifest."""

Path = str | os.PathLike[str]


def save(path: Path, tree: Any, *, meta: Any = None, tx: Any = None) -> None:
    """Save a tree to one file, atomically: after a crash at any moment it is there whole, or as before.

    The file is a ZIP archive that any tool opens: the bytes of each array, and a JSON manifest with
    their paths, dtypes, shapes and digests. One array at a time comes to the host.

    Args:
        path: the file; its folder must exist.
        tree: dicts (keys are strings or whole numbers), lists, tuples, NamedTuples, dataclasses and
            other nodes JAX knows, of arrays, random keys, Python numbers and None.
        meta: anything JSON can hold, and infinities, NaN and tuples; `read_meta` returns it.
        tx: the transform that made the states in the tree; with it, `load` can tell that the script
            has another schedule.

    Raises:
        CheckpointError: the tree or `meta` holds something a checkpoint cannot.
        OSError: the system could not write; nothing is left behind.
    """
    write_checkpoint(storage.Storage(), os.fspath(path), tree, meta=meta, tx=tx)


def load(
    path: Path,
    like: Any = None,
    *,
    partial: Any = False,
    migrate: Migration | None = None,
    tx: Any = None,
    hyperparams: str | None = None,
) -> Any:
    """Load what `save` wrote, bit for bit; nothing is cast, padded or reordered.

    Args:
        path: the file.
        like: a tree of arrays or `jax.ShapeDtypeStruct` with the structure wanted. Leaves match by
            path, and must agree in shape and dtype; each goes where the leaf of `like` is: on its
            devices, in NumPy, or a Python number. Without it, the arrays come as nested dicts, lists
            and tuples of NumPy arrays.
        partial: True takes the leaves that both sides have; a glob, regex or predicate of paths
            takes those leaves of `like`. The others keep the values of `like`.
        migrate: what was renamed: a mapping from the beginning of an old path, or the old name of a
            rule, to the new one; or a function from the old path to the new one.
        tx: the transform the script uses now; see `save`.
        hyperparams: who wins where the script and `set_hyperparams` both changed a number, and
            wherever else they differ: "transform" (the script) or "state". By default the one that
            changed it wins, and what the script changed is printed.

    Raises:
        CheckpointError: the file is damaged, or does not fit `like`: one report of all differences.
    """
    given = {"partial": partial, "migrate": migrate, "tx": tx, "hyperparams": hyperparams}
    idle = [f"{name}={value!r}" for name, value in given.items() if value is not None and value is not False]
    if like is None and idle:
        raise TypeError(
            f"load({os.fspath(path)!r}): {', '.join(idle)} was given without like=; they say how a file goes into a "
            f"tree. Pass a tree of arrays or shapes as like=."
        )
    return read_checkpoint(storage.Storage(), os.fspath(path), like, **given).tree


def read_meta(path: Path) -> Any:
    """The `meta` a checkpoint was saved with.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_summary(storage.Storage(), os.fspath(path)).meta


# Writing -----------------------------------------------------------------------------------------


def write_checkpoint(
    files: storage.Storage, path: str, tree: Any, *, meta: Any = None, tx: Any = None, metrics: Any = None
) -> None:
    """`save` on a given storage, with the metrics that choose the best checkpoint."""
    call = f"save({path!r})"
    found = trees.walk(call, tree)
    records: list[Record] = []
    arrays = []
    for keys, leaf in found.leaves:
        record = leaves.to_record(call, keys, leaf, len(arrays))
        records.append(record)
        if record.blob is not None:
            arrays.append(leaf)
    content = {
        "format": FORMAT,
        "versions": _versions(),
        "configuration": None if tx is None else configuration(tx),
        "meta": _plain(call, "meta", meta),
        "metrics": _plain(call, "metrics", metrics),
        "leaves": [leaves.to_json(record) for record in records],
        "empty": [[trees.to_json(keys), kind] for keys, kind in found.empties],
    }
    held = trees.total_memory(keys for keys, _ in (*found.leaves, *found.empties))
    needed = sum(record.nbytes for record in records if record.blob is not None) + OVERHEAD * len(records)

    def blobs() -> Iterator[memoryview]:
        return (leaves.to_bytes(leaf) for leaf in arrays)

    def write(file: Any) -> None:
        archive.write(files, file, content, blobs(), reserve=held)

    storage.write_atomically(files, path, needed, write)


def _plain(call: str, name: str, value: Any) -> Any:
    try:
        return strict_json.encode(value, name)
    except TypeError as error:
        raise CheckpointError(f"{call}: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{call}: {name} is nested too deeply, or in itself. Flatten it.") from None


def _versions() -> dict[str, str]:
    # Looked up: an import of the package from one of its own modules would be a circle.
    return {module.__name__: module.__version__ for module in (sys.modules["jopt"], jax, np)}


def configuration(tx: Any) -> dict[str, Any]:
    """The numbers and schedules of a transform, by full name, and the call that makes it."""
    parts = as_transform(tx, "save").parts
    return {"transform": _described(tx), "numbers": _numbers(parts, ""), "schedules": _schedules(parts, "")}


def _numbers(parts: Parts, scope: str) -> dict[str, Any]:
    return {name: scalars.raw(value) for name, value in _hyper(parts, scope) if not callable(value)}


def _schedules(parts: Parts, scope: str) -> dict[str, str]:
    return {name: _described(value) for name, value in _hyper(parts, scope) if callable(value)}


def _hyper(parts: Parts, scope: str) -> Iterator[tuple[str, Any]]:
    for part in walk(parts):
        yield from ((f"{scope}{part.name}/{name}", value) for name, value in part.hyper)
        for below, tx in part.wrapped:
            if isinstance(tx, Transform):
                yield from _hyper(tx.parts, f"{scope}{below}")


def _described(value: Any) -> str:
    """What prints the same in the next process: without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


# Reading -----------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """What a manifest says beside the leaves."""

    meta: Any
    metrics: Any
    configuration: Any


class Loaded(NamedTuple):
    """A tree, and what its manifest says."""

    tree: Any
    meta: Any


def read_summary(files: storage.Storage, path: str) -> Summary:
    """The manifest of a checkpoint whose structure is sound; the arrays are not read."""
    call = f"read_meta({path!r})"
    with archive.Archive(files, path, call) as opened:
        _parse(call, opened)
        return _summary(call, opened.content)


def _summary(call: str, content: Mapping[str, Any]) -> Summary:
    try:
        meta, metrics = strict_json.decode(content.get("meta")), strict_json.decode(content.get("metrics"))
        return Summary(meta, metrics, content.get("configuration"))
    except (ValueError, RecursionError) as error:
        raise damaged(call, f"the manifest: {error}") from None


def _parse(call: str, opened: archive.Archive) -> tuple[list[Record], list[Any]]:
    """The records of all leaves, which use each blob once, in order; and the empty containers."""
    content = opened.content
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{call}: the file has the format {str(content.get('format'))[:80]}, this jopt reads format {FORMAT}. "
            f"Load it with a newer jopt."
        )
    try:
        listed, empty = content.get("leaves"), content.get("empty")
        if not isinstance(listed, list) or not isinstance(empty, list):
            raise ValueError("it lists no leaves")
        found = list(trees.within(opened.room, _entries(call, listed, empty)))
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(call, f"the manifest: {error}") from None
    records: list[Record] = [record for _, record in found[: len(listed)]]
    used = [record for record in records if record.blob is not None]
    if [record.blob for record in used] != list(range(len(opened.sizes))):
        raise damaged(call, "the manifest: leaves and blobs do not belong to each other")
    for record, size in zip(used, opened.sizes, strict=True):
        if record.nbytes != size:
            raise damaged(call, f"the manifest: {record.spec} in {size} bytes")
    return records, found[len(listed) :]


def _entries(call: str, listed: list[Any], empty: list[Any]) -> Iterator[tuple[Keys, Any]]:
    for value in listed:
        record = leaves.from_json(call, value)
        yield record.keys, record
    for keys, kind in empty:
        yield trees.from_json(keys), str(kind)


def read_checkpoint(
    files: storage.Storage,
    path: str,
    like: Any,
    *,
    partial: Any = False,
    migrate: Migration | None = None,
    tx: Any = None,
    hyperparams: str | None = None,
) -> Loaded:
    """`load` on a given storage, with the manifest's `meta`, of which `like` may be a function."""
    call = f"load({path!r})"
    if hyperparams not in reconcile.CHOICES:
        raise ValueError(f"{call}: hyperparams={hyperparams!r} was given; None, 'state' or 'transform' were expected.")
    with archive.Archive(files, path, call) as opened:
        records, empties = _parse(call, opened)
        summary = _summary(call, opened.content)
        if inspect.isfunction(like):
            like = like(summary.meta)
        if like is None:
            tree = _load_nested(call, opened, records, empties)
        else:
            saved = migrated(call, records, migrate)
            tree, lines = _load_like(call, opened, saved, like, partial, hyperparams)
            reconcile.announce(call, lines + _schedule_lines(summary, tx))
    return Loaded(tree, summary.meta)


def _load_nested(call: str, opened: archive.Archive, records: list[Record], empties: Any) -> Any:
    values = []
    for record in records:
        value = _value(call, opened, record)
        values.append((record.keys, leaves.wrap_key(call, record, value) if record.spec.kind == "key" else value))
    try:
        return trees.nested(values, empties)
    except ValueError as error:
        raise damaged(call, f"the manifest: {error}") from None


def _load_like(
    call: str, opened: archive.Archive, saved: dict[str, Record], like: Any, partial: Any, choice: str | None
) -> tuple[Any, list[str]]:
    found = trees.walk(call, like)
    wanted = [Wanted(keys, leaves.spec_of(call, keys, leaf), leaf) for keys, leaf in found.leaves]
    now = {w.path: w.leaf for w in wanted}
    paths = _number_paths(found, now, saved)
    # What a number is configured with is missing on the side where it follows a schedule.
    take = match(call, saved, wanted, partial, {configured for _, configured in paths.values()})
    paths = {name: pair for name, pair in paths.items() if pair[0] in take}
    values, lines = reconcile.reconcile(call, _numbers_of(call, opened, paths, saved, now), choice)
    new = []
    for w in wanted:
        if w.path in take:
            value = values[w.path] if w.path in values else _value(call, opened, take[w.path])
            new.append(leaves.place(call, take[w.path], value, w.leaf))
        else:
            new.append(w.leaf)
    return trees.unflatten(like, new), lines


def _number_paths(found: trees.Walk, now: Mapping[str, Any], saved: Mapping[str, Record]) -> dict[str, tuple[str, str]]:
    """The live and the configured path of each hyper-parameter that both sides have, by full name."""
    paths: dict[str, tuple[str, str]] = {}
    for keys in found.states:
        scope = f"{keys.path}/" if len(found.states) > 1 else ""
        numbers = reconcile.number_paths(keys.path, now)
        paths |= {scope + name: pair for name, pair in numbers.items() if pair[0] in saved}
    return paths


def _numbers_of(
    call: str,
    opened: archive.Archive,
    paths: Mapping[str, tuple[str, str]],
    saved: Mapping[str, Record],
    now: Mapping[str, Any],
) -> list[reconcile.Number]:
    """The hyper-parameters to reconcile: not those on a schedule on both sides, nor what has a shape only."""
    numbers = []
    for name, (live, configured) in paths.items():
        if isinstance(now.get(configured), jax.ShapeDtypeStruct) or not (configured in saved or configured in now):
            continue
        before = _value(call, opened, saved[configured]) if configured in saved else None
        script = np.asarray(now[configured]) if configured in now else None
        numbers.append(reconcile.Number(name, (live, configured), _value(call, opened, saved[live]), before, script))
    return numbers


def _value(call: str, opened: archive.Archive, record: Record) -> Any:
    if record.blob is None:
        return record.value
    try:
        return leaves.from_bytes(record, opened.read(record.blob))
    except ValueError as error:
        raise damaged(call, f"{record.path}: {error}") from None


def _schedule_lines(summary: Summary, tx: Any) -> list[str]:
    saved = summary.configuration.get("schedules") if isinstance(summary.configuration, dict) else None
    if tx is None or not isinstance(saved, dict):
        return []
    return reconcile.schedule_lines(saved, configuration(tx)["schedules"])
