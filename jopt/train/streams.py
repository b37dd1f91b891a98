"""Batches from any iterable, prefetched by a thread."""

import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jopt.train.batches import Work, split_evenly

AHEAD = 4
"""Batches that wait for the device."""
STACK_BYTES = 2**25
LARGEST_STACK = 32


class Item(NamedTuple):
    """A batch and the state of its source after it; or the end, or an error."""

    batch: Any
    state: Any
    error: BaseException | None = None
    end: bool = False


class Prefetch:
    """Pulls batches in a thread, at most `AHEAD` in advance."""

    def __init__(self, iterator: Iterator[Any], state_of: Callable[[], Any]):
        self.items: queue.Queue[Item] = queue.Queue(AHEAD)
        self.stopped = threading.Event()
        self.over = False
        self.thread = threading.Thread(target=self._pull, args=(iterator, state_of), daemon=True)
        self.thread.start()

    def _pull(self, iterator: Iterator[Any], state_of: Callable[[], Any]) -> None:
        try:
            for batch in iterator:
                if not self._put(Item(jax.tree.map(np.asarray, batch), state_of())):
                    return
            self._put(Item(None, None, end=True))
        except BaseException as error:  # goes to the thread that asked
            self._put(Item(None, None, error=error))

    def _put(self, item: Item) -> bool:
        while not self.stopped.is_set():
            try:
                self.items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def get(self) -> Item:
        """The next item; an error of the iterator is raised here, once, and is its end."""
        if self.over:  # the thread has nothing more to put
            return Item(None, None, end=True)
        item = self.items.get()
        self.over = item.end or item.error is not None
        if item.error is not None:
            raise item.error
        return item

    def close(self) -> None:
        """Let the thread end; it leaves the iterator alone from here on."""
        self.stopped.set()
        self.thread.join(timeout=10)


class StreamFeed:
    """An iterable of batches as a feed.

    Args:
        data: an iterable of batches (a list, a loader), iterated anew for every epoch; an iterator, which has
            one epoch; or a function of the epoch that gives an iterable. Batches are trees of arrays.
        steps_per_call: batches of one call; None fits them to `STACK_BYTES`.
        micro: micro-batches of a step; a batch that does not split evenly is split into more.
    """

    def __init__(self, data: Any, steps_per_call: int | None = None, micro: int = 1):
        self.data = data
        self.once = not callable(data) and iter(data) is data
        self.capacity, self.micro = steps_per_call, micro
        self.epoch = self.step = self.first = 0
        self.exhausted = False
        self.back: list[Item] = []
        self.taken: list[Item] = []
        self.state: Any = None  # of the source at `step`
        self.earlier: Any = None  # of the source before `taken`
        self.length: int | None = None  # of the present epoch, if known
        self.prefetch = self._open(None)

    def _open(self, state: Any) -> Prefetch:
        """Iterate over the present epoch, from a state of the source if there is one."""
        source = self.data(self.epoch) if callable(self.data) else self.data
        self.length = _len(source)
        iterator = iter(source)
        holder = next((x for x in (iterator, source) if hasattr(x, "get_state") and hasattr(x, "set_state")), None)
        if holder is None:
            self.state = None
            return Prefetch(iterator, lambda: None)
        if state is not None:
            holder.set_state(state)
        self.state = holder.get_state()
        return Prefetch(iterator, holder.get_state)

    def _next(self) -> Item:
        return self.back.pop(0) if self.back else self.prefetch.get()

    def _peek(self) -> Item:
        item = self._next()
        self.back.insert(0, item)
        return item

    def batch(self) -> Any:
        """The shapes of the first batch.

        Raises:
            ValueError: there is none.
        """
        item = self._peek()
        if item.end:
            raise ValueError(
                f"fit: the data {self.data!r} gave no batch, at least one was expected. A generator that was "
                f"used before is empty: pass a list, a loader, or a function that makes the iterable."
            )
        size, _ = split_evenly(_length(item.batch), self.micro)
        canonical = jax.dtypes.canonicalize_dtype
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), canonical(x.dtype)), item.batch)

    def first_size(self) -> int:
        """Examples of the first step."""
        return _length(self._peek().batch)

    def sample(self) -> Any:
        """The first batch, to initialise a model with."""
        return jax.tree.map(lambda x: x[:1], self._peek().batch)

    def example_batch(self) -> Any:
        """The last batch that was used, or the first that will be."""
        return self.taken[-1].batch if self.taken else self._peek().batch

    def shapes_of(self, work: Work) -> Any:
        """The shapes of a micro-batch of some work."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((work.size, *a.shape[2:]), a.dtype), work.data)

    def total(self, epochs: int) -> int | None:
        """Optimizer steps of so many epochs, None where the length is not known."""
        return None if self.length is None else self.length * (1 if self.once else epochs)

    def take(self, at_most: int) -> Work | None:
        """The next batches of one shape as a stack; None at the end of the epoch."""
        items: list[Item] = []
        capacity = 0
        while not items or len(items) < min(capacity, at_most):
            item = self._peek()
            if item.end or (items and _shapes(item.batch) != _shapes(items[0].batch)):
                break
            items.append(self._next())
            capacity = capacity or self._capacity_for(items[0].batch)
        if not items:
            return None
        # One statement, so that an interrupt cannot come between them.
        self.taken, self.earlier, self.state, self.step = items, self.state, items[-1].state, self.step + len(items)
        stack = jax.tree.map(lambda *xs: _stacked(xs, capacity), *[item.batch for item in items])
        return Work("stack", stack, None, 0, len(items), *split_evenly(_length(items[0].batch), self.micro))

    def _capacity_for(self, batch: Any) -> int:
        if self.capacity is not None:
            return self.capacity
        size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
        return int(np.clip(STACK_BYTES // max(size, 1), 1, LARGEST_STACK))

    def settle(self, step: int) -> None:
        """Stand at a step of the last work: the loop did less than it took."""
        before = self.step - len(self.taken)
        done = min(max(step - before, 0), len(self.taken))
        if done < len(self.taken):
            self.back[:0] = self.taken[done:]
            self.taken = self.taken[:done]
            self.step = before + done
            self.state = self.taken[-1].state if self.taken else self.earlier

    def epoch_done(self) -> bool:
        """Whether the iterable has ended; waits for its next batch."""
        return self._peek().end

    @property
    def ended(self) -> bool:
        """Whether the iterable is known to have ended, without waiting for it."""
        return bool(self.back) and self.back[0].end

    def next_epoch(self) -> None:
        """Begin the next epoch, if there is one."""
        self.prefetch.close()
        self.back, self.taken = [], []
        self.epoch, self.first = self.epoch + 1, self.step
        if self.once:
            self.exhausted = True
            self.back = [Item(None, None, end=True)]
        else:
            self.prefetch = self._open(None)

    def progress(self) -> float:
        """Epochs done, with the share of the present one where its length is known."""
        length = self.total(1)
        return self.epoch + ((self.step - self.first) / length if length else 0.0)

    def position(self) -> dict[str, Any]:
        """Where it stands, for a checkpoint."""
        state = self.state
        if isinstance(state, bytes):
            state = {"bytes": state.hex()}
        return {"epoch": self.epoch, "first": self.first, "step": self.step, "state": state}

    def restore(self, position: dict[str, Any]) -> None:
        """Stand there again: by the source's own state, or by skipping forward."""
        state = position["state"]
        if isinstance(state, dict) and set(state) == {"bytes"}:
            state = bytes.fromhex(state["bytes"])
        self.epoch, self.first, self.step = position["epoch"], position["first"], position["step"]
        if state is None and self.once:
            self._skip(self.step)
            return
        self.prefetch.close()
        self.back = []
        self.prefetch = self._open(state)
        if state is None:
            self._skip(self.step - self.first)

    def _skip(self, batches: int) -> None:
        if batches and not callable(self.data):
            warnings.warn(
                f"fit: resuming skips {batches} batches of {type(self.data).__name__} that were used before; its order "
                f"must be the same. Pass a function of the epoch, or an iterator with get_state and set_state.",
                stacklevel=2,
            )
        for done in range(batches):
            if self._next().end:
                raise ValueError(
                    f"fit: the data ended after {done} batches, but the run to resume used {batches}; the same data "
                    f"were expected. Pass the data of that run."
                )

    def fingerprint(self) -> str | None:
        """Streams have none: their content is not known in advance."""
        return None

    def close(self) -> None:
        """Stop the thread."""
        self.prefetch.close()


def _len(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _shapes(batch: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]


def _length(batch: Any) -> int:
    leaves = jax.tree.leaves(batch)
    return leaves[0].shape[0] if leaves and leaves[0].ndim else 1


def _stacked(arrays: tuple[np.ndarray, ...], capacity: int) -> np.ndarray:
    stack = np.zeros((capacity, *arrays[0].shape), arrays[0].dtype)
    for i, array in enumerate(arrays):
        stack[i] = array
    return stack
