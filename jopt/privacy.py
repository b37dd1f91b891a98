"""Differential privacy: gradients of single examples, clipped, summed and drowned in noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes, linalg
from jopt.paths import Flat, TreeMismatchError, flatten
from jopt.rule import Whole, no_params
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule, scalar_dtype
from jopt.transform import Transform, whole
from jopt.update import salt


def per_example_global_norm_clip(grads: Any, l2_norm_clip: jax.typing.ArrayLike) -> tuple[Any, jax.Array]:
    """Scale the gradient of each example down to a norm, and add them up.

        s = Σᵢ gᵢ · min(1, c / ‖gᵢ‖),   ‖gᵢ‖ over all arrays

    Args:
        grads: a tree of arrays with a leading axis of examples, as
            ``jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, examples)`` gives them.
        l2_norm_clip: c ≥ 0.

    Returns:
        The sum, a tree without that axis, and how many examples were scaled down. What is 16 bits
        wide is summed, and returned, in float32.

    Raises:
        TreeMismatchError: an array lacks the axis, or has another number of examples.

    Reference: [abadi2016deep], Algorithm 1.
    """
    flat, layout = flatten(grads)
    _check_examples("per_example_global_norm_clip", flat)
    sums, clipped = _clip_and_sum(flat, jnp.asarray(l2_norm_clip, scalar_dtype()))
    return layout.unflatten(sums), clipped


def per_example_layer_norm_clip(
    grads: Any, global_l2_norm_clip: jax.typing.ArrayLike, uniform: bool = True
) -> tuple[Any, Any]:
    """Scale each array's gradient of each example down to a norm of its own, and add them up.

        sₖ = Σᵢ gᵢₖ · min(1, cₖ / ‖gᵢₖ‖),   cₖ = c / √K, or c √(nₖ / n)

    so that the norm of one example over all K arrays is at most c.

    Args:
        grads: a tree of arrays with a leading axis of examples.
        global_l2_norm_clip: c ≥ 0.
        uniform: True gives each array the same share of c², False one in proportion to its nₖ of all
            n elements.

    Returns:
        The sum, a tree without that axis, and a tree of how many examples were scaled down.

    Raises:
        TreeMismatchError: an array lacks the axis, or has another number of examples.

    Reference: [mcmahan2018learning], section 2.3.
    """
    flat, layout = flatten(grads)
    _check_examples("per_example_layer_norm_clip", flat)
    sizes = {path: 1 if uniform else math.prod(g.shape[1:]) for path, g in flat.items()}
    total = max(sum(sizes.values()), 1)
    sums, clipped = {}, {}
    for path, g in flat.items():
        share = jnp.asarray(global_l2_norm_clip, scalar_dtype()) * math.sqrt(sizes[path] / total)
        alone, clipped[path] = _clip_and_sum({path: g}, share)
        sums |= alone
    return layout.unflatten(sums), layout.unflatten(clipped)


def _check_examples(call: str, flat: Flat) -> None:
    shapes = {path: tuple(jnp.shape(g)) for path, g in flat.items()}
    first = next(iter(shapes.values()), ())
    wrong = [path for path, shape in shapes.items() if shape[:1] != first[:1] or not shape]
    if wrong:
        raise TreeMismatchError(
            f"{call}: the gradient of {wrong[0]!r} has the shape {shapes[wrong[0]]}, a leading axis of "
            f"{first[0] if first else 'all'} examples was expected. Take gradients by "
            f"jax.vmap(jax.grad(loss), in_axes=(None, 0))."
        )


def _clip_and_sum(flat: Flat, bound: jax.Array) -> tuple[Flat, jax.Array]:
    """The sum of the clipped gradients, and how many were clipped."""
    flat = {path: dtypes.enter(g) for path, g in flat.items()}
    if not flat:
        return {}, jnp.zeros((), jnp.int32)
    norms = jax.vmap(_joint_norm)(list(flat.values()))
    over = norms > bound
    factors = jnp.where(over, bound / jnp.where(over, norms, 1), 1)
    sums = {path: _weighted_sum(factors, g) for path, g in flat.items()}
    return sums, jnp.sum(over.astype(jnp.int32))


def _joint_norm(leaves: list[jax.Array]) -> jax.Array:
    """The norm of one example; a norm of norms does not overflow."""
    return linalg.norm(jnp.stack([linalg.norm(x).astype(scalar_dtype()) for x in leaves]))


def _weighted_sum(factors: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.sum(g * jnp.reshape(factors, (-1, *[1] * (g.ndim - 1))).astype(g.dtype), axis=0)


# As a transform ----------------------------------------------------------------------------------


def aggregate_update(grads, own, params, *, key, l2_norm_clip, noise_multiplier):
    """The mean of clipped gradients of single examples, with noise."""
    if params is None:
        raise no_params("differentially_private_aggregate")  # by their shapes it knows the axis of examples
    examples = {path: g if g.ndim > params[path].ndim else g[None] for path, g in grads.items()}
    n = max(next((len(g) for g in examples.values()), 1), 1)  # a batch drawn at random may be empty: noise alone
    sums, _ = _clip_and_sum(examples, l2_norm_clip)
    deviation = noise_multiplier * l2_norm_clip
    noisy = {path: x + _noise(jax.random.fold_in(key, salt(path)), x, deviation) for path, x in sums.items()}
    return {path: x / n for path, x in noisy.items()}, own


def _noise(key: jax.Array, x: jax.Array, deviation: jax.Array) -> jax.Array:
    """Normal noise like x; of a complex x both parts have the deviation."""
    real = jnp.finfo(x.dtype).dtype
    normal = jax.random.normal(key, (2, *x.shape) if jnp.iscomplexobj(x) else x.shape, real)
    noise = deviation.astype(real) * normal
    return dtypes.from_pair(noise) if jnp.iscomplexobj(x) else noise


AGGREGATE = Whole("differentially_private_aggregate", aggregate_update, enters=False, examples=True)


def differentially_private_aggregate(
    l2_norm_clip: ScalarOrSchedule, noise_multiplier: ScalarOrSchedule, key: Any = 0
) -> Transform:
    """The mean of gradients of single examples, each clipped, with Gaussian noise.

        u = (Σᵢ gᵢ · min(1, c / ‖gᵢ‖) + σ c n) / B,   n ~ N(0, 1)

    First in a chain. Its gradients have a leading axis of B examples:
    ``jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, examples)``. Without that axis they are the
    gradients of one example.

    Args:
        l2_norm_clip: c ≥ 0, the greatest norm of one example over all arrays.
        noise_multiplier: σ ≥ 0, the deviation of the noise in units of c; what privacy it buys, an
            accountant must say.
        key: seed or random key. Each leaf and step has noise of its own.

    Differs: an empty batch gives noise alone. Anyone who knows the key can take the noise away again:
        draw it, do not leave it at 0, where the privacy is meant.
    Reference: [abadi2016deep], Algorithm 1.
    """
    return whole(
        AGGREGATE,
        hyper={"l2_norm_clip": l2_norm_clip, "noise_multiplier": noise_multiplier},
        domain={"l2_norm_clip": NONNEGATIVE, "noise_multiplier": NONNEGATIVE},
        key=key,
    )
