"""Transcriptions: optimizers that estimate their rate, or read the loss or its curvature.

Most are over the tree: g, p and what s holds by a symbol are dicts of arrays, numbers are of the tree.
"""

import math

import numpy as np


def _inner(xs, ys):
    return math.fsum(
        float(a) * float(b) for name in xs for a, b in zip(np.ravel(xs[name]), np.ravel(ys[name]), strict=True)
    )


def _size(xs):
    return math.sqrt(_inner(xs, xs))


def _minus(xs, ys):
    return {name: xs[name] - ys[name] for name in xs}


def _mix(rate, old, new, weight=None):
    """rate · old + weight · new, with 1 − rate for no weight, and zero for no old."""
    weight = 1.0 - rate if weight is None else weight
    return {name: rate * (0.0 if old is None else old[name]) + weight * x for name, x in new.items()}


def _times(factor, xs):
    return {name: factor * x for name, x in xs.items()}


def _squares(xs):
    return {name: x**2 for name, x in xs.items()}


# Distance over gradients -------------------------------------------------------------------------


def scale_by_dog(g, p, s, t, init_step, eps=1e-8):
    # Ivgi et al. 2023: η = max ‖x_i − x₀‖ / √Σ‖g_i‖², with r_ε to begin.
    kind, value = init_step
    x0 = s.setdefault("x0", dict(p))
    r_eps = {"distance": value, "heuristic": value * (1.0 + _size(x0)), "learning_rate": 0.0}[kind]
    s["r"] = max(s.get("r", r_eps), _size(_minus(p, x0)))
    s["G"] = s.get("G", 0.0) + _inner(g, g)
    eta = value if kind == "learning_rate" and t == 1 else s["r"] / math.sqrt(s["G"] + eps)
    return _times(eta, g)


def dog(g, p, s, t, learning_rate=1.0, init_step=("heuristic", 1e-6), eps=1e-8, weight_decay=0.0):
    g = {name: g[name] + weight_decay * p[name] for name in g}
    return _times(-learning_rate, scale_by_dog(g, p, s, t, init_step, eps))


def scale_by_dowg(g, p, s, t, init_estim_sq_dist=None, eps=1e-4):
    # Khaled et al. 2023, Algorithm 1: r̄² = max(‖x − x₀‖², r̄²), v = v + r̄²‖g‖², η = r̄² / √v.
    x0 = s.setdefault("x0", dict(p))
    moved = _minus(p, x0)
    s["r2"] = max(s.get("r2", eps if init_estim_sq_dist is None else init_estim_sq_dist), _inner(moved, moved))
    s["v"] = s.get("v", 0.0) + s["r2"] * _inner(g, g)
    return _times(s["r2"] / (math.sqrt(s["v"]) + eps), g)


def dowg(g, p, s, t, learning_rate=1.0, init_estim_sq_dist=None, eps=1e-4, weight_decay=0.0):
    g = {name: g[name] + weight_decay * p[name] for name in g}
    return _times(-learning_rate, scale_by_dowg(g, p, s, t, init_estim_sq_dist, eps))


def scale_by_distance_over_gradients(g, p, s, t, reps_rel=1e-6, eps=1e-8, global_scale=1.0):
    # Layer-wise DoG; x₀ is kept in float32 unless asked otherwise.
    x0 = s.setdefault("x0", np.asarray(p, np.float32).astype(np.float64))
    s["r"] = max(s.get("r", reps_rel * (1.0 + _size({"": p}))), _size({"": p - x0}))
    s["G"] = s.get("G", 0.0) + _size({"": g}) ** 2
    return global_scale * s["r"] / math.sqrt(s["G"] + eps) * g


# Rates from inner products -----------------------------------------------------------------------


def scale_by_prodigy(
    g, p, s, t, learning_rate=1.0, b1=0.9, b2=0.999, beta3=None, eps=1e-8, estim_lr0=1e-6, estim_lr_coef=1.0,
    weight_decay=0.0, safeguard_warmup=False,
):  # fmt: skip
    # Mishchenko and Defazio 2024, as its authors run it: with Adam's bias correction.
    beta3 = math.sqrt(b2) if beta3 is None else beta3
    x0, d = s.setdefault("x0", dict(p)), s.get("d", estim_lr0)
    eta = d * learning_rate * math.sqrt(1.0 - b2**t) / (1.0 - b1**t)
    dg = _times(d, g)
    s["m"] = _mix(b1, s.get("m"), dg)
    s["v"] = _mix(b2, s.get("v"), _squares(dg))
    s["s"] = _mix(beta3, s.get("s"), dg, (d if safeguard_warmup else eta) / estim_lr0)
    s["r"] = beta3 * s.get("r", 0.0) + d / estim_lr0 * eta * _inner(g, _minus(x0, p))
    below = sum(float(np.sum(np.abs(x))) for x in s["s"].values())
    s["d"] = max(d, estim_lr_coef * s["r"] / below) if below else d
    root = {name: np.sqrt(v) + s["d"] * eps for name, v in s["v"].items()}
    return {name: eta * (s["m"][name] / root[name] + weight_decay * p[name]) for name in p}


def prodigy(g, p, s, t, betas=(0.9, 0.999), **numbers):
    return _times(-1.0, scale_by_prodigy(g, p, s, t, b1=betas[0], b2=betas[1], **numbers))


def scale_by_dadapt_adamw(g, p, s, t, learning_rate=1.0, b1=0.9, b2=0.999, eps=1e-8, estim_lr0=1e-6, weight_decay=0.0):
    # Defazio and Mishchenko 2023, with Adam's bias correction.
    sigma, d = math.sqrt(b2), s.get("d", estim_lr0)
    eta = d * learning_rate * math.sqrt(1.0 - b2**t) / (1.0 - b1**t)
    ahead = 0.0
    if "s" in s:
        ahead = _inner(g, {name: x / (np.sqrt(s["v"][name]) + eps) for name, x in s["s"].items()})
    s["r"] = sigma * s.get("r", 0.0) + (1.0 - sigma) * eta * ahead
    s["m"] = _mix(b1, s.get("m"), _times(eta, g))
    s["v"] = _mix(b2, s.get("v"), _squares(g))
    s["s"] = _mix(sigma, s.get("s"), _times(eta, g))
    below = (1.0 - sigma) * sum(float(np.sum(np.abs(x))) for x in s["s"].values())
    s["d"] = max(d, s["r"] / below) if below else d
    return {name: s["m"][name] / (np.sqrt(s["v"][name]) + eps) + weight_decay * eta * p[name] for name in p}


def dadapt_adamw(g, p, s, t, betas=(0.9, 0.999), **numbers):
    return _times(-1.0, scale_by_dadapt_adamw(g, p, s, t, b1=betas[0], b2=betas[1], **numbers))


# Step sizes from the loss ------------------------------------------------------------------------


def scale_by_polyak(g, p, s, t, value, f_min=0.0, max_learning_rate=1.0, eps=0.0, variant="sps"):
    # Loizou et al. 2021 (SPS_max with c = 1); Garrigos et al. 2023 for the positive part.
    gap = value - f_min
    gap = max(gap, 0.0) if variant == "sps+" else gap
    below = _inner(g, g) + eps
    return _times(0.0 if below <= 2.0**-52 else min(gap / below, max_learning_rate), g)


def polyak_sgd(g, p, s, t, value, scaling=1.0, **numbers):
    return scale_by_polyak(_times(-scaling, g), p, s, t, value, **numbers)


def _momentum_model(s, m, p, square, value, beta, product, alpha, share, weight_decay, lower_bound, adapt):
    # Schaipp et al. 2024: τ = min(α / ρ, ((1 + αλ)(f̄ − ρf* − γ) + ⟨d, x⟩)₊ / ‖d‖²).
    s["f"] = beta * s.get("f", 0.0) + (1.0 - beta) * value
    s["gamma"] = beta * s.get("gamma", 0.0) + (1.0 - beta) * product
    ahead, low = _inner(m, p), s.get("low", lower_bound)
    factor = 1.0 + alpha * weight_decay
    height = factor * (s["f"] - s["gamma"]) + ahead
    if adapt and height < factor * share * low:
        low = max(height / (2.0 * share * factor), lower_bound)  # reset
    tau = 0.0
    if square > 2.0**-52:
        tau = min(alpha / share, max(height - factor * share * low, 0.0) / square)
    if adapt:
        s["low"] = max((s["f"] + ahead - s["gamma"] - tau * square / 2.0) / share, lower_bound)
    return tau, alpha * weight_decay / factor


def scale_by_momo(
    g, p, s, t, value, learning_rate=1.0, beta=0.9, lower_bound=0.0, weight_decay=0.0, adapt_lower_bound=False
):
    beta = 0.0 if t == 1 else beta
    s["m"] = _mix(beta, s.get("m"), g)
    tau, shrink = _momentum_model(
        s, s["m"], p, _inner(s["m"], s["m"]), value, beta, _inner(g, p), learning_rate, 1.0, weight_decay,
        lower_bound, adapt_lower_bound,
    )  # fmt: skip
    return {name: tau * m + shrink * p[name] for name, m in s["m"].items()}


def momo(g, p, s, t, value, **numbers):
    return _times(-1.0, scale_by_momo(g, p, s, t, value, **numbers))


def scale_by_momo_adam(
    g, p, s, t, value, learning_rate=1e-2, b1=0.9, b2=0.999, eps=1e-8, lower_bound=0.0, weight_decay=0.0,
    adapt_lower_bound=False,
):  # fmt: skip
    s["m"] = _mix(b1, s.get("m"), g)
    s["v"] = _mix(b2, s.get("v"), _squares(g))
    z = {name: m / (eps + np.sqrt(s["v"][name] / (1.0 - b2**t))) for name, m in s["m"].items()}
    tau, shrink = _momentum_model(
        s, s["m"], p, _inner(s["m"], z), value, b1, _inner(g, p), learning_rate, 1.0 - b1**t, weight_decay,
        lower_bound, adapt_lower_bound,
    )  # fmt: skip
    return {name: tau * x + shrink * p[name] for name, x in z.items()}


def momo_adam(g, p, s, t, value, **numbers):
    return _times(-1.0, scale_by_momo_adam(g, p, s, t, value, **numbers))


# Coin betting ------------------------------------------------------------------------------------


def scale_by_cocob(g, p, s, t, alpha=100.0, eps=1e-8):
    # Orabona and Tommasi 2017, Algorithm 2, with c = −g.
    w1 = s.setdefault("w1", p)
    s["L"] = np.maximum(s.get("L", eps), np.abs(g))
    s["G"] = s.get("G", 0.0) + np.abs(g)
    s["Reward"] = np.maximum(s.get("Reward", 0.0) - g * (p - w1), 0.0)
    s["theta"] = s.get("theta", 0.0) - g
    beta = s["theta"] / (s["L"] * np.maximum(s["G"] + s["L"], alpha * s["L"]))
    return w1 + beta * (s["L"] + s["Reward"]) - p


def cocob(g, p, s, t, learning_rate=1.0, alpha=100.0, eps=1e-8, weight_decay=0.0):
    return scale_by_cocob(learning_rate * (g + weight_decay * p), p, s, t, alpha, eps)


# The scale of another transform's updates -------------------------------------------------------


def mechanize(g, p, s, t, weight_decay=1e-2, eps=1e-8, s_init=1e-6, num_betas=None):
    # Cutkosky et al. 2023, Algorithm 1, around gradient descent with rate 1; three betas with the larger s_init.
    num_betas = 3 if s_init > 1e-3 else 6
    betas = 1.0 - 0.1 ** np.arange(1, num_betas + 1)
    x0, delta = s.setdefault("x0", dict(p)), s.get("delta", {name: np.zeros_like(x) for name, x in p.items()})
    scales = s.get("s", np.full(num_betas, s_init))
    m_old = s.get("m", np.zeros(num_betas))
    decay = weight_decay * np.sum(scales) * _size(g) / (_size(p) + eps)
    # The authors' sign: h = ⟨g, Δ⟩ with Δ the sum of the steps, of which −Δ is kept.
    h = _inner({name: g[name] + decay * p[name] for name in g}, delta)
    s["m"] = np.maximum(betas * m_old, abs(h) + eps)
    s["v"] = betas**2 * s.get("v", 0.0) + h**2
    s["r"] = betas * s.get("r", 0.0) + np.clip(h, -m_old, m_old) * scales
    s["s"] = (s_init / num_betas * s["m"] + np.maximum(s["r"], 0.0)) / (np.sqrt(s["v"]) + eps)
    delta = {name: delta[name] + g[name] for name in g}
    u = {name: x0[name] - np.sum(s["s"]) * delta[name] - p[name] for name in g}
    # Δ is not kept but read off the parameters, which is exact but for ε.
    s["delta"] = {name: (x0[name] - p[name] - u[name]) / (np.sum(s["s"]) + eps) for name in g}
    return u
