"""Bounded logits of attention: queries and keys scaled down where a logit grew too large."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.paths import Leaf, flatten
from jopt.paths import where as choose
from jopt.rule import Whole, no_params
from jopt.scalars import FRACTION, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, whole


def qk_clip_update(updates, own, params, *, layout, max_logits, threshold, alpha, queries, keys, heads):
    """Shrink the queries and keys of heads whose largest logit is above the bound."""
    if params is None:
        raise no_params("qk_clip", "tx.update(grads, state, params, max_logits=...)")
    logits, _ = flatten(max_logits)
    leaves = {path: Leaf(path, tuple(p.shape), p.dtype) for path, p in params.items()}
    found, new = set(), dict(updates)
    for where, share in ((queries, alpha), (keys, 1 - alpha)):
        for path in sorted(where.choose(leaves, layout)):
            name = _measured(path, logits)
            found.add(name)
            p = dtypes.compute(params[path])
            factor = _factor(jnp.asarray(logits[name], p.dtype), threshold.astype(p.dtype), share.astype(p.dtype))
            new[path] = (p + updates[path]) * _along(factor, leaves[path], heads) - p
    idle = sorted(logits.keys() - found - {""})  # one number for all asks for nobody in particular
    if idle:
        raise ValueError(
            f"update: qk_clip was given max_logits for {idle}, for which {queries!r} and {keys!r} choose no parameter; "
            f"paths of modules with queries and keys were expected. Correct the paths, or queries= and keys=."
        )
    return new, own


def _measured(path: str, logits: Mapping[str, Any]) -> str:
    """The longest path of logits that the parameter lies under."""
    parts = path.split("/")
    name = next((n for i in range(len(parts), -1, -1) if (n := "/".join(parts[:i])) in logits), None)
    if name is None:
        raise ValueError(
            f"update: qk_clip was given max_logits for {sorted(logits)}, and nothing for {path!r}; the largest logits "
            f"of every attention were expected. Add them, or narrow queries= and keys=."
        )
    return name


def _factor(largest: jax.Array, threshold: jax.Array, share: jax.Array) -> jax.Array:
    over = (largest > threshold) & jnp.isfinite(largest)
    return jnp.where(over, threshold / jnp.where(over, largest, 1), 1) ** share


def _along(factor: jax.Array, leaf: Leaf, axis: int) -> jax.Array:
    """A factor for each head as an array that multiplies the leaf."""
    if not factor.ndim:
        return factor
    fits = factor.ndim == 1 and -leaf.ndim <= axis < leaf.ndim and factor.size
    if not fits or leaf.shape[axis] % factor.size:
        raise ValueError(
            f"update: qk_clip was given logits of shape {list(factor.shape)} for {leaf.path!r} of shape "
            f"{list(leaf.shape)}, one for each head along its axis {axis} was expected. Pass heads= the axis that "
            f"counts them; it may be longer by a factor where heads and their features share one."
        )
    size = leaf.shape[axis]
    return jnp.repeat(factor, size // factor.size).reshape(
        [size if i == axis % leaf.ndim else 1 for i in range(leaf.ndim)]
    )


def qk_clip(
    threshold: ScalarOrSchedule = 100.0,
    alpha: ScalarOrSchedule = 0.5,
    *,
    queries: Any = "**/query/*",
    keys: Any = "**/key/*",
    heads: int = -2,
) -> Transform:
    """Scale queries and keys of the attention heads whose largest logit exceeded a bound.

        γ = min(1, τ / S)                    S: the largest logit of the head in this step
        W_q ← γᵅ W_q,   W_k ← γ¹⁻ᵅ W_k       W: the stepped parameter p + u

    Last in a chain, after `scale_by_learning_rate`. `update` must be given ``max_logits=``: a tree, or a
    dict by path, of numbers per head under the path of the attention (``{"block_0/attention": [...]}``),
    or one number for all. Logits that are not finite change nothing.

    Args:
        threshold: τ > 0.
        alpha: α in [0, 1], the share of the queries.
        queries, keys: glob, regex or predicate of the kernels (and biases) of queries and of keys.
        heads: their axis of heads. Flax has (inputs, heads, size); -1 is that of (inputs, heads·size).

    MuonClip is ``chain(muon(rate, consistent_rms=0.2), qk_clip())``.
    Reference: [kimiteam2025k2].
    """
    return whole(
        Whole("qk_clip", qk_clip_update, complex=False),
        hyper={"threshold": threshold, "alpha": alpha},
        static={"queries": choose(queries), "keys": choose(keys), "heads": int(heads)},
        domain={"threshold": POSITIVE, "alpha": FRACTION},
    )
