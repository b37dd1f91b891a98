"""Batches from arrays: what an epoch consists of, and the shuffle, on the device."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Sizes = int | tuple[int, int] | Callable[[int], Any]


class Work(NamedTuple):
    """Some optimizer steps of one shape, for the compiled loop.

    Attributes:
        kind: "arrays" or "stack": how `data` holds the batches.
        data: arrays with all examples, or a stack of batches.
        order: int32 indices of the examples in this epoch; None takes them as they lie.
        start: where the first batch begins: an example of `order`, or a batch of the stack.
        count: optimizer steps.
        size: examples of a micro-batch.
        micro: micro-batches of an optimizer step.
    """

    kind: str
    data: Any
    order: Any
    start: int
    count: int
    size: int
    micro: int


class Segment(NamedTuple):
    """Steps of one size in a row: `count` batches of `size` examples from `start` on."""

    start: int
    size: int
    count: int


def rounded(size: float) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: few shapes, so that few programs are compiled."""
    power = 2 ** int(np.floor(np.log2(max(size, 1))))
    return int(min((power, power * 3 // 2 if power > 1 else 2, power * 2), key=lambda x: abs(x - size)))


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """The number of examples of each optimizer step.

    Attributes:
        of: a number, exact; a schedule of the step, or a range (low, high) drawn from at random, both rounded
            to few sizes.
        micro: examples of a micro-batch where steps accumulate several; sizes are then multiples of it.
        seed: of random sizes.
    """

    of: Sizes
    micro: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.of, tuple):
            if len(self.of) != 2 or not all(map(_is_count, self.of)) or self.of[0] > self.of[1]:
                raise ValueError(
                    f"fit: batch_size={self.of!r} was given, a range (low, high) of whole numbers with 1 ≤ low ≤ high "
                    f"was expected. Pass for example batch_size=(32, 128)."
                )
        elif not callable(self.of) and not _is_count(self.of):
            raise ValueError(
                f"fit: batch_size={self.of!r} was given, a whole number of at least 1, a schedule of the step or a "
                f"range (low, high) was expected. Pass for example batch_size=64."
            )

    @property
    def fixed(self) -> bool:
        """Whether every step has the same size."""
        return _is_count(self.of)

    def __call__(self, step: int) -> int:
        """Examples of step `step`, from 0."""
        if callable(self.of):
            size = float(self.of(step))
            if not size >= 1:
                raise ValueError(
                    f"fit: the schedule of batch_size gave {size!r} at step {step}, at least 1 was expected. "
                    f"Mend the schedule."
                )
        elif isinstance(self.of, tuple):
            low, high = self.of
            size = float(np.random.default_rng([self.seed, step]).integers(low, high + 1))
        else:
            return int(self.of)
        return rounded(size) if self.micro is None else self.micro * max(1, round(size / self.micro))


def _is_count(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and bool(x >= 1)


def segments(examples: int, size: BatchSize, first_step: int, last_batch: str) -> Iterator[Segment]:
    """An epoch of `examples` as runs of equal batches; the first of them is step `first_step` of all training.

    A last batch that is not full is kept, or dropped unless it is the only one.
    """
    if size.fixed:
        full = size(0)
        runs = [Segment(0, full, examples // full)] if examples >= full else []
        rest = examples % full
        if rest and (last_batch == "keep" or not runs):
            runs.append(Segment(examples - rest, rest, 1))
        yield from runs
        return
    start, step, run = 0, first_step, None
    while start < examples:
        wanted = size(step)
        now = min(wanted, examples - start)
        if now < wanted and last_batch == "drop" and step > first_step:
            break
        if run is not None and run.size == now:
            run = run._replace(count=run.count + 1)
        else:
            if run is not None:
                yield run
            run = Segment(start, now, 1)
        start, step = start + now, step + 1
    if run is not None:
        yield run


def first_of(runs: Sequence[Segment], batches: int) -> Iterator[Segment]:
    """The first so many batches."""
    for run in runs:
        if batches > 0:
            yield run._replace(count=min(run.count, batches))
        batches -= run.count


def steps_of(examples: int, size: BatchSize, last_batch: str, epochs: int) -> int:
    """Optimizer steps of so many epochs."""
    if size.fixed:
        return epochs * sum(s.count for s in segments(examples, size, 0, last_batch))
    step = 0
    for _ in range(epochs):
        step += sum(s.count for s in segments(examples, size, step, last_batch))
    return step


def permutation(words: Sequence[int], epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, int32[examples].

    Drawn on the host: the device would sort random numbers for it (64k examples on CPU: 26 ms, here 0.6), and
    the order then is the same on every device.
    """
    return np.random.default_rng([*words, epoch]).permutation(examples).astype(np.int32)


class ArrayFeed:
    """Arrays as a feed of batches; where it stands is a matter of the step alone.

    Args:
        arrays: any tree whose arrays have the examples on their first axis.
        size: of the batches.
        shuffle: True for a permutation of each epoch, False for the order as it is, or a function
            (key, examples) → int32 indices, which may repeat or leave out examples.
        last_batch: "keep" or "drop".
        key: of the shuffles.
        limit: use only the first so many batches of every epoch; None for all.
    """

    exhausted = False

    def __init__(self, arrays: Any, size: BatchSize, shuffle: Any, last_batch: str, key: Any, limit: int | None = None):
        self.examples = count_examples(arrays)
        self.data = jax.tree.map(jnp.asarray, arrays)
        self.size, self.shuffle, self.last_batch, self.key, self.limit = size, shuffle, last_batch, key, limit
        if callable(shuffle):
            self.drawn = jax.jit(self._draw)
            self.examples = self.drawn.eval_shape(key, 0).shape[0]
        self.words = () if key is None else tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())
        self.epoch = self.step = self.first = 0
        self._begin()

    def _draw(self, key: Any, epoch: Any) -> Any:
        return jnp.asarray(self.shuffle(jax.random.fold_in(key, epoch), count_examples(self.data)), jnp.int32)

    def _begin(self) -> None:
        """Lay out the epoch that starts at step `first`."""
        self.segments = list(segments(self.examples, self.size, self.first, self.last_batch))
        if self.limit is not None:
            self.segments = list(first_of(self.segments, self.limit))
        self.steps = sum(s.count for s in self.segments)
        self.order = None

    def _ordered(self) -> Any:
        if self.shuffle is False or self.limit is not None:
            return None
        if self.order is None:
            if callable(self.shuffle):
                self.order = self._checked(self.drawn(self.key, self.epoch))
            else:
                self.order = jnp.asarray(permutation(self.words, self.epoch, self.examples))
        return self.order

    def _checked(self, order: jax.Array) -> jax.Array:
        """Compiled code takes it on trust that no index leads out of the data."""
        low, high, examples = int(order.min()), int(order.max()), count_examples(self.data)
        if low < 0 or high >= examples:
            raise ValueError(
                f"fit: shuffle={self.shuffle!r} gave indices from {low} to {high}, numbers from 0 to {examples - 1} "
                f"were expected. Draw them with maxval={examples}."
            )
        return order

    def batch(self) -> Any:
        """The shapes of the first micro-batch."""
        size, _ = self._split(self.segments[0].size)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), self.data)

    def first_size(self) -> int:
        """Examples of the first step."""
        return self.segments[0].size

    def sample(self) -> Any:
        """A few examples, to initialise a model with."""
        return jax.tree.map(lambda a: a[:1], self.data)

    def example_batch(self) -> Any:
        """The first batch of the epoch."""
        chosen, order = slice(0, self.segments[0].size), self._ordered()
        return jax.tree.map(lambda a: a[chosen] if order is None else a[order[chosen]], self.data)

    def shapes_of(self, work: Work) -> Any:
        """The shapes of a micro-batch of some work."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((work.size, *a.shape[1:]), a.dtype), work.data)

    def _split(self, size: int) -> tuple[int, int]:
        return split_evenly(size, 1 if self.size.micro is None else -(-size // self.size.micro))

    def total(self, epochs: int) -> int:
        """Optimizer steps of so many epochs."""
        if self.limit is not None:
            return self.steps * epochs
        return steps_of(self.examples, self.size, self.last_batch, epochs)

    def take(self, at_most: int) -> Work | None:
        """The next steps, at most so many; None at the end of the epoch."""
        done = self.step - self.first
        for segment in self.segments:
            if done < segment.count:
                size, micro = self._split(segment.size)
                count = min(at_most, segment.count - done)
                self.step += count
                return Work(
                    "arrays", self.data, self._ordered(), segment.start + done * segment.size, count, size, micro
                )
            done -= segment.count
        return None

    def epoch_done(self) -> bool:
        """Whether the epoch has no step left."""
        return self.step - self.first >= self.steps

    @property
    def ended(self) -> bool:
        """The same: nothing has to be waited for."""
        return self.epoch_done()

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.first = self.epoch + 1, self.step
        self._begin()

    def settle(self, step: int) -> None:
        """Stand at a step of this epoch: the loop did less than it took."""
        self.step = step

    def progress(self) -> float:
        """Epochs done, with the share of the present one."""
        return self.epoch + (self.step - self.first) / max(self.steps, 1)

    def position(self) -> dict[str, Any]:
        """Where it stands, for a checkpoint."""
        return {"epoch": self.epoch, "first": self.first, "step": self.step, "layout": self._layout()}

    def _layout(self) -> str:
        of = "schedule" if callable(self.size.of) else repr(self.size.of)
        shuffle = "function" if callable(self.shuffle) else repr(self.shuffle)
        return f"{self.examples} examples, batch_size={of}, shuffle={shuffle}, last_batch={self.last_batch!r}"

    def restore(self, position: dict[str, Any]) -> None:
        """Stand there again.

        Raises:
            ValueError: batches are laid out otherwise, so that the rest of the epoch would not be the same.
        """
        if position["layout"] != self._layout() and position["step"] != position["first"]:
            raise ValueError(
                f"fit: the run stopped within an epoch of {position['layout']}; {self._layout()} was given, the same "
                f"was expected. Pass the same data and batches, or resume=False in another folder."
            )
        self.epoch, self.first, self.step = position["epoch"], position["first"], position["step"]
        self._begin()

    def fingerprint(self) -> str:
        """A digest of the data, to see that a resumed run has the same."""
        return fingerprint(self.data)

    def close(self) -> None:
        """Nothing is held."""


def split_evenly(size: int, at_least: int) -> tuple[int, int]:
    """A batch as (examples of a micro-batch, number of micro-batches): the smallest number that divides it."""
    micro = min(at_least, size)
    while size % micro:
        micro += 1
    return size // micro, micro


def count_examples(arrays: Any) -> int:
    """The common length of the first axes.

    Raises:
        ValueError: there is no array or no example, or lengths differ.
    """
    lengths: dict[str, Any] = {
        jax.tree_util.keystr(path): np.shape(leaf)[0] if np.ndim(leaf) else None
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if len(set(lengths.values())) != 1 or None in lengths.values() or 0 in lengths.values():
        raise ValueError(
            f"fit: data with first axes {lengths} were given, arrays with the same number of examples, at least one, "
            f"were expected. Pass for example data=(inputs, labels)."
        )
    return next(iter(lengths.values()))


def fingerprint(arrays: Any) -> str:
    """SHA-256 of shapes, dtypes and content; of a large array every so many examples, 16 MiB in all."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        every = max(1, leaf.nbytes // 2**24)
        digest.update(np.ascontiguousarray(np.asarray(leaf[::every])).tobytes())
    return digest.hexdigest()
