"""Transcriptions: factored, block-wise and sign-based optimizers."""

import math

import numpy as np

from oracles import classic

# Adafactor ---------------------------------------------------------------------------------------


def _rank_one(row, col, row_axis, col_axis):
    """Shazeer and Stern 2018, section 3: V = R Cᵀ / (1ᵀ R), with means for sums."""
    total = np.mean(row, axis=row_axis, keepdims=True)
    return row * col / total


def scale_by_factored_rms(
    g,
    p,
    s,
    t,
    factored=True,
    decay_rate=0.8,
    step_offset=0,
    min_dim_size_to_factor=128,
    epsilon=1e-30,
    decay_rate_fn=None,
):
    beta = 1.0 - float(t - step_offset) ** -decay_rate if decay_rate_fn is None else decay_rate_fn(t - 1, decay_rate)
    squares = g**2 + epsilon
    lengths = sorted(range(g.ndim), key=lambda i: g.shape[i])
    if not factored or g.ndim < 2 or g.shape[lengths[-2]] < min_dim_size_to_factor:
        s["V"] = beta * s.get("V", 0.0) + (1.0 - beta) * squares
        return g / np.sqrt(s["V"])
    second, first = lengths[-2:]
    s["R"] = beta * s.get("R", 0.0) + (1.0 - beta) * np.mean(squares, axis=first)
    s["C"] = beta * s.get("C", 0.0) + (1.0 - beta) * np.mean(squares, axis=second)
    v = _rank_one(np.expand_dims(s["R"], first), np.expand_dims(s["C"], second), second, first)
    return g / np.sqrt(v)


def scale_by_param_block_norm(g, p, s, t, min_scale=1e-3):
    return g * max(np.linalg.norm(p), min_scale)


def scale_by_param_block_rms(g, p, s, t, min_scale=1e-3):
    return g * max(math.sqrt(np.mean(p**2)), min_scale)


def _clip_rms(u, d):
    return u / max(1.0, math.sqrt(np.mean(u**2)) / d)


def adafactor(
    g,
    p,
    s,
    t,
    learning_rate=1.0,
    decay_rate=0.8,
    decay_offset=0,
    clipping_threshold=1.0,
    multiply_by_parameter_scale=True,
    momentum=None,
    weight_decay_rate=0.0,
    eps=1e-30,
    min_dim_size_to_factor=128,
):
    # Algorithm 4, with the momentum and the decay of the library it is known from.
    u = scale_by_factored_rms(g, p, s, t, True, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    u = -learning_rate * (_clip_rms(u, clipping_threshold) if clipping_threshold is not None else u)
    u = scale_by_param_block_rms(u, p, s, t) if multiply_by_parameter_scale else u
    u = u if momentum is None else classic.scale_by_ema(u, p, s, t, momentum, debias=False)
    return u - weight_decay_rate * p


# CAME --------------------------------------------------------------------------------------------


def scale_by_came(g, p, s, t, b1=0.9, b2=0.999, b3=0.9999, eps=1e-30, eps_doubt=1e-16, threshold=1.0):
    # Luo et al. 2023, Algorithm 2; vectors as in Algorithm 1.
    if g.ndim < 2:
        s["v"] = b2 * s.get("v", 0.0) + (1.0 - b2) * (g**2 + eps)
        s["M"] = b1 * s.get("M", 0.0) + (1.0 - b1) * _clip_rms(g / np.sqrt(s["v"]), threshold)
        return s["M"]
    s["R"] = b2 * s.get("R", 0.0) + (1.0 - b2) * np.mean(g**2 + eps, axis=-1)
    s["C"] = b2 * s.get("C", 0.0) + (1.0 - b2) * np.mean(g**2 + eps, axis=-2)
    u = _clip_rms(g / np.sqrt(_rank_one(s["R"][..., None], s["C"][..., None, :], -2, -1)), threshold)
    s["M"] = b1 * s.get("M", 0.0) + (1.0 - b1) * u
    instability = (u - s["M"]) ** 2 + eps_doubt
    s["Ru"] = b3 * s.get("Ru", 0.0) + (1.0 - b3) * np.mean(instability, axis=-1)
    s["Cu"] = b3 * s.get("Cu", 0.0) + (1.0 - b3) * np.mean(instability, axis=-2)
    return s["M"] / np.sqrt(_rank_one(s["Ru"][..., None], s["Cu"][..., None, :], -2, -1))


def came(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_came(g, p, s, t, **numbers) + weight_decay * p)


# SM3 ---------------------------------------------------------------------------------------------


def scale_by_sm3(g, p, s, t, b1=0.9, b2=1.0, eps=1e-8):
    # Anil et al. 2019, SM3-II with the slices of a tensor along each axis as its cover; ν by single elements.
    x = g.reshape(1) if g.ndim == 0 else g
    nu = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        least = min(np.ravel(s[f"mu{k}"])[i] if t > 1 else 0.0 for k, i in enumerate(index))
        nu[index] = b2 * least + (1.0 if b2 == 1.0 else 1.0 - b2) * x[index] ** 2
    for k in range(x.ndim):
        slices = np.array([np.take(nu, i, axis=k).max() for i in range(x.shape[k])])
        s[f"mu{k}"] = slices.reshape(g.shape) if g.ndim == 0 else slices
    u = np.divide(x, np.sqrt(nu + eps), out=np.zeros_like(x), where=nu > 0)
    s["m"] = b1 * s.get("m", 0.0) + (1.0 - b1) * u.reshape(g.shape)
    return s["m"]


def sm3(g, p, s, t, learning_rate, momentum=0.9):
    return -learning_rate * scale_by_sm3(g, p, s, t, momentum)


# Norms and spheres -------------------------------------------------------------------------------


def scale_by_shrinking_rate(g, p, s, t, learning_rate):
    # (p − γg) / √(1 + γ²) − p, where the difference of the two p would cancel.
    shrinkage = -math.expm1(-0.5 * math.log1p(learning_rate**2))
    return -learning_rate * (1.0 - shrinkage) * g - shrinkage * p


def fromage(g, p, s, t, learning_rate, min_norm=1e-6):
    # Bernstein et al. 2020, Algorithm 1, with a floor under both norms.
    p_norm, g_norm = (max(float(np.linalg.norm(x)), min_norm) for x in (p, g))
    return scale_by_shrinking_rate(g * p_norm / g_norm, p, s, t, learning_rate)


def scale_by_hyperball_rate(g, p, s, t, learning_rate):
    # Wen et al. 2026: W ← R Normalize(W − η R Normalize(u)), with R = ‖W₀‖.
    s["R"] = s.get("R", np.linalg.norm(p))
    length = np.linalg.norm(g)
    if length == 0 or learning_rate == 0:
        return np.zeros_like(g)
    x = p - learning_rate * s["R"] * g / length
    return s["R"] * x / np.linalg.norm(x) - p


def hyperball(g, p, s, t, learning_rate, rest_learning_rate=None):
    u = classic.scale_by_adam(g, p, s, t)
    if p.ndim > 1:
        return scale_by_hyperball_rate(u, p, s, t, learning_rate)
    return -(learning_rate if rest_learning_rate is None else rest_learning_rate) * u


# Blocks ------------------------------------------------------------------------------------------


def scale_by_adam_mini(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, axis=None, parts=None):
    # Zhang et al. 2025, Algorithm 1, block by block: v ← β₂v + (1 − β₂) mean(g ⊙ g).
    s["m"] = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    apart = [] if axis is None else sorted(i % g.ndim for i in np.atleast_1d(axis) if -g.ndim <= i < g.ndim)
    counts = tuple(parts or g.shape[i] if i in apart else 1 for i in range(g.ndim))
    v, u = np.zeros(counts), np.zeros_like(g)
    for block in np.ndindex(counts):
        inside = tuple(
            slice(k * n // count, (k + 1) * n // count) for k, n, count in zip(block, g.shape, counts, strict=True)
        )
        before = s["v"][block] if "v" in s else 0.0
        v[block] = b2 * before + (1.0 - b2) * np.mean(g[inside] ** 2)
        u[inside] = s["m"][inside] / (1.0 - b1**t) / (math.sqrt(v[block] / (1.0 - b2**t)) + eps)
    s["v"] = v
    return u


def adam_mini(g, p, s, t, learning_rate, weight_decay=0.0, parts=None, **numbers):
    axis = None if g.ndim < 2 else -1  # vectors are one block, and of all other leaves here a block is a neuron
    u = scale_by_adam_mini(g, p, s, t, axis=axis, parts=parts, **numbers)
    return -learning_rate * classic.add_decayed_weights(u, p, s, t, weight_decay)


def layerwise_decay(g, p, s, t, decay):
    # Layer 0 the bias, layers 1 to 4 those with a number (of which there is none), then the kernel, then the gain.
    above = {"bias": 6, "kernel": 1, "gain": 0}
    return {name: decay ** above[name] * x for name, x in g.items()}


# Steps -------------------------------------------------------------------------------------------


def apply_every(g, p, s, t, k=1):
    s["a"] = g if (t - 1) % k == 0 else s["a"] + g
    return s["a"] if t % k == 0 else np.zeros_like(g)


def differentially_private_aggregate(g, p, s, t, l2_norm_clip, noise_multiplier):
    # Abadi et al. 2016, Algorithm 1, for a lot of one example and without noise.
    norm = math.sqrt(sum(np.sum(x**2) for x in g.values()))
    return {name: x / max(1.0, norm / l2_norm_clip) for name, x in g.items()}


def dpsgd(g, p, s, t, learning_rate, l2_norm_clip, noise_multiplier, momentum=0.0, nesterov=False):
    found = {}
    for name, x in differentially_private_aggregate(g, p, s, t, l2_norm_clip, noise_multiplier).items():
        b = s.setdefault("b", {})
        b[name] = momentum * b.get(name, 0.0) + x
        found[name] = -learning_rate * (momentum * b[name] + x if nesterov else b[name])
    return found
