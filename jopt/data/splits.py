"""Which examples go where: splits into parts, weights and orders that balance the classes.

Splits are NumPy index arrays, made once on the host; `balanced_order` runs on the device, in a
compiled training loop.
"""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-6  # examples: what floating point may take from a share


def random_split(examples: int, parts: Sequence[int | float], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Split `examples` examples at random, without looking at labels.

        train, valid = random_split(len(x), (0.9, 0.1))

    Args:
        examples: how many there are.
        parts: the size of every part, as numbers of examples (integers) or as shares (floats); together
            at most everything. What is left over is in no part.
        seed: the same seed gives the same split, in every version of NumPy.

    Returns:
        For each part the indices of its examples, in random order.

    Raises:
        ValueError: the parts are empty or too large.
    """
    sizes = _sizes("random_split", examples, parts)
    order = _generator(seed).permutation(examples)
    return tuple(np.split(order, np.cumsum(sizes))[: len(sizes)])


def stratified_split(
    labels: np.ndarray | jax.Array, parts: Sequence[int | float], seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Split so that every class has the same share in every part.

        train, valid, test = stratified_split(y, (0.7, 0.1, 0.2))

    Sizes are exact. Within a part each class gets its share of what is left, rounded down; the places
    still free go to the largest remainders. Every class is in every part at least once.

    Args:
        labels: classes, shape (n,): integers or strings.
        parts: the size of every part, as numbers of examples (integers) or as shares (floats); together
            at most everything. What is left over is in no part.
        seed: the same seed gives the same split, in every version of NumPy.

    Returns:
        For each part the indices of its examples, in random order.

    Raises:
        ValueError: the parts are empty or too large, or a class has too few examples to be in all of them.
    """
    labels = np.asarray(labels)
    _check_labels("stratified_split", labels)
    sizes = _sizes("stratified_split", len(labels), parts)
    classes, members = np.unique(labels, return_inverse=True)
    left = np.bincount(members)
    _check_that_classes_fit(classes, left, sizes)
    generator = _generator(seed)
    pools = [generator.permutation(np.flatnonzero(members == c)) for c in range(len(classes))]
    split = []
    for position, size in enumerate(sizes):
        parts_to_come = len(sizes) - position - 1
        counts = _apportion(size, left, most=left - parts_to_come)
        chosen = [pool[:count] for pool, count in zip(pools, counts, strict=True)]
        pools = [pool[count:] for pool, count in zip(pools, counts, strict=True)]
        left = left - counts
        split.append(generator.permutation(np.concatenate(chosen)))
    return tuple(split)


def class_weights(labels: np.ndarray | jax.Array, classes: int | None = None) -> np.ndarray:
    """Weights that give every class the same say in a mean over examples.

        weight(c) = n / (k · n_c)        so that the mean weight of an example is 1

    Args:
        labels: classes as integers from 0, shape (n,).
        classes: k, the number of classes; None takes the largest label plus one.

    Returns:
        float32 of shape (k,). `class_weights(y)[y]` are the weights of the examples.

    Raises:
        ValueError: a class without examples, or a label outside 0 .. k − 1.
    """
    labels = np.asarray(labels)
    _check_labels("class_weights", labels)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(
            f"class_weights: labels of dtype {labels.dtype} that start with {labels[0]!r} were given, integers from 0 "
            f"were expected. Number the classes first: np.unique(labels, return_inverse=True)[1]."
        )
    k = int(labels.max()) + 1 if classes is None else operator.index(classes)
    counts = np.bincount(labels, minlength=k)
    if len(counts) > k or (counts == 0).any():
        wrong = f"label {len(counts) - 1}" if len(counts) > k else f"no example of class {int(counts.argmin())}"
        raise ValueError(
            f"class_weights: {wrong} was found among {len(labels)} labels of {k} classes, every class from 0 to "
            f"{k - 1} was expected, and no other. Renumber the classes, or pass the right number as classes=."
        )
    return (len(labels) / (k * counts)).astype(np.float32)


def balanced_order(key: jax.Array, labels: jax.Array | np.ndarray, n: int) -> jax.Array:
    """Draw the indices of `n` examples in random order, from every class as often as from any other.

    Numbers of draws differ by at most one between classes. A class gives all of its examples before it
    repeats one. Works under `jit` and `vmap`; the number of classes need not be known.

    Args:
        key: a new one for every epoch.
        labels: classes as integers, shape (examples,).
        n: how many to draw; may be more or less than there are examples.

    Returns:
        int32 indices of shape (n,).
    """
    labels = jnp.asarray(labels)
    _check_labels("balanced_order", labels)
    n = operator.index(n)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or n < 1:
        raise ValueError(
            f"balanced_order: labels of dtype {labels.dtype} and n={n} were given, integer labels and at least one "
            f"draw were expected. Number the classes, and pass for example n=len(labels)."
        )
    examples = len(labels)
    within, first, last = jax.random.split(key, 3)
    # Examples sorted by class, in random order inside a class; `starts` is where each class begins.
    bits = jax.random.bits(within, (examples,), jnp.uint32)
    position = jnp.arange(examples, dtype=jnp.int32)
    by_class, _, grouped = jax.lax.sort((labels, bits, position), num_keys=2)
    begins = jnp.concatenate([jnp.ones(1, bool), by_class[1:] != by_class[:-1]])
    classes = begins.sum(dtype=jnp.int32)
    starts = jnp.nonzero(begins, size=examples + 1, fill_value=examples)[0].astype(jnp.int32)
    counts = jnp.diff(starts)
    # Classes take turns; which one begins is random, or the remainder would always go to the same ones.
    turn = jnp.arange(n, dtype=jnp.int32)
    c = (turn + jax.random.randint(first, (), 0, classes, jnp.int32)) % classes
    drawn = grouped[starts[c] + turn // classes % counts[c]]
    return jax.random.permutation(last, drawn)


def _generator(seed: int) -> np.random.RandomState:
    # The old generator: its stream is frozen, that of `default_rng` may change with NumPy.
    return np.random.RandomState(seed)


def _check_labels(call: str, labels: np.ndarray | jax.Array) -> None:
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            f"{call}: labels of shape {labels.shape} were given, one label for each example, shape (n,) with n ≥ 1, "
            f"was expected. Turn soft labels into classes with labels.argmax(-1)."
        )


def _sizes(call: str, examples: int, parts: Sequence[int | float]) -> list[int]:
    """Numbers of examples of the parts; shares are rounded by largest remainder."""
    parts = [part.item() if isinstance(part, np.generic) else part for part in parts]
    if not parts or not all(isinstance(part, int | float) and part > 0 and math.isfinite(part) for part in parts):
        raise ValueError(
            f"{call}: parts={parts!r} was given, positive numbers of examples or shares were expected. "
            f"Pass for example (0.8, 0.2)."
        )
    if all(isinstance(part, int) for part in parts):
        sizes, wanted = parts, sum(parts)
    elif all(isinstance(part, float) for part in parts):
        # Ten shares of 0.1 add up to a little less than 1, and must still use every example.
        wanted = math.floor(sum(parts) * examples + ROUNDING)
        sizes = _round_to_total(np.array(parts) * examples, wanted)
    else:
        raise ValueError(
            f"{call}: parts={parts!r} mixes numbers of examples and shares, one kind was expected. "
            f"Write all as integers, or all as floats."
        )
    if wanted > examples or min(sizes) == 0:
        raise ValueError(
            f"{call}: parts={parts!r} of {examples} examples means parts of {list(map(int, sizes))}, parts with at "
            f"least one example and {examples} together were expected. Choose other sizes."
        )
    return [int(size) for size in sizes]


def _check_that_classes_fit(classes: np.ndarray, counts: np.ndarray, sizes: list[int]) -> None:
    rarest = int(counts.argmin())
    if counts[rarest] < len(sizes):
        raise ValueError(
            f"stratified_split: class {classes[rarest].item()!r} with {counts[rarest]} examples was given for "
            f"{len(sizes)} parts, an example of every class for every part was expected. Merge rare classes, or use "
            f"random_split."
        )
    if min(sizes) < len(classes):
        raise ValueError(
            f"stratified_split: a part of {min(sizes)} examples was asked for with {len(classes)} classes, an "
            f"example of every class was expected. Make the part larger, or use random_split."
        )


def _apportion(total: int, left: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Divide `total` places among classes in proportion to `left`, each class between 1 and `most`."""
    quotas = total * left / left.sum()
    counts = np.clip(_round_to_total(quotas, total), 1, most)
    while counts.sum() != total:
        if counts.sum() < total:
            counts[np.where(counts < most, quotas - counts, -np.inf).argmax()] += 1
        else:
            counts[np.where(counts > 1, counts - quotas, -np.inf).argmax()] -= 1
    return counts


def _round_to_total(quotas: np.ndarray, total: int) -> np.ndarray:
    """Round `quotas` down, then up again where the remainders are largest, until they sum to `total`."""
    counts = np.floor(quotas + ROUNDING).astype(int)
    largest = np.argsort(counts - quotas, kind="stable")
    counts[largest[: total - counts.sum()]] += 1
    return counts
