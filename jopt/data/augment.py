"""Several augmentation steps as one."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

Step = Callable[[jax.Array, Any], Any]


@dataclasses.dataclass(frozen=True)
class Augment:
    """Steps in order, each with its own key; made by `augment`."""

    steps: tuple[Step, ...]
    takes_labels: ClassVar[bool] = True

    def __call__(self, key: jax.Array, batch: Any) -> Any:
        """Change a batch: x alone, or a tuple (x, y, ...) of which y and what follows keep their places.

        Raises:
            TypeError: the batch is neither, or a step that changes labels gets none.
        """
        if isinstance(batch, dict) or batch is None:
            raise TypeError(
                f"augment: a batch of type {type(batch).__name__} was given, images or a tuple (images, labels, ...) "
                f"was expected. Call the step with the arrays it is for."
            )
        for position, step in enumerate(self.steps):
            own = jax.random.fold_in(key, position)
            if getattr(step, "takes_labels", False):
                batch = step(own, batch)
            elif isinstance(batch, tuple | list):
                batch = (step(own, batch[0]), *batch[1:])
            else:
                batch = step(own, batch)
        return batch


def augment(*steps: Step) -> Augment:
    """Join augmentation steps: the result is called as `augmented = change(key, batch)`.

        change = augment(Shift(1), Rotate(10), Mixup(0.2, classes=10))
        x, y = change(key, (x, y))

    Equal steps make equal augmentations, so a cell that is run again compiles nothing. Appending a
    step does not change what the ones before it draw.

    Args:
        steps: `Shift`, `Flip`, ... see images only; `Mixup`, `Cutmix`, `LabelSmoothing` see (x, y). A
            function (key, images) → images works too; one with `takes_labels = True` sees the batch.

    Raises:
        TypeError: something that cannot be called.
    """
    for step in steps:
        if not callable(step) or isinstance(step, type):
            raise TypeError(
                f"augment: {step!r} was given, steps such as Shift(1), or functions (key, images) → images, were "
                f"expected. Pass the steps one by one: augment(Shift(1), Flip())."
            )
    return Augment(steps)
