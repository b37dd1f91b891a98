"""One recorded sequence of gradients and losses, and how two replays of it are compared."""

import numpy as np


def record(shapes, steps, seed=7):
    """Parameters, gradients of magnitudes over 10^[-3, 1] that change at each step, and losses.

    One element of the vector never has a gradient and one has none in the first half; once a whole
    array has none. The losses fall, then stay about zero.
    """
    rng = np.random.default_rng(seed)
    params = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    grads = {}
    for name, shape in shapes.items():
        size = (steps, *shape)
        grads[name] = rng.choice([-1.0, 1.0], size) * 10.0 ** rng.uniform(-3, 1, size)
    grads["bias"][:, 1] = 0.0
    grads["bias"][: steps // 2, 2] = 0.0
    grads["kernel"][steps // 3] = 0.0
    losses = np.concatenate([np.geomspace(3.0, 0.1, steps // 2), rng.uniform(-0.2, 0.2, steps - steps // 2)])
    return params, grads, losses


def error(got, expected):
    """Largest difference over all steps, relative to the largest value the element has had up to its step."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    scale = np.maximum.accumulate(np.abs(expected), axis=0)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return float(np.max(np.where(same, 0.0, np.abs(got - expected) / np.where(scale > 0, scale, 1e-300)), initial=0.0))
