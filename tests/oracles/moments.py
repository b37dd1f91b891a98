"""Transcriptions: Adam and its descendants, element by element."""

import math

import numpy as np


def _mean(g, s, name, beta):
    s[name] = beta * s.get(name, 0.0) + (1.0 - beta) * g
    return s[name]


def _adam(g, s, t, b1, b2, eps):
    m, v = _mean(g, s, "m", b1), _mean(g**2, s, "v", b2)
    return m / (1.0 - b1**t) / (np.sqrt(v / (1.0 - b2**t)) + eps)


def _ahead(g, m, t, b1, nesterov):
    if nesterov:
        return b1 * m / (1.0 - b1 ** (t + 1)) + (1.0 - b1) * g / (1.0 - b1**t)
    return m / (1.0 - b1**t)


def _norm(x):
    return math.sqrt(math.fsum(float(y) ** 2 for y in np.ravel(x)))


# Second moments ----------------------------------------------------------------------------------


def scale_by_belief(g, p, s, t, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False):
    # Zhuang et al. 2020, Algorithm 2: s_t = β₂ s_{t−1} + (1 − β₂)(g_t − m_t)² + ε.
    m = _mean(g, s, "m", b1)
    s["s"] = b2 * s.get("s", 0.0) + (1.0 - b2) * (g - m) ** 2 + eps_root
    return _ahead(g, m, t, b1, nesterov) / (np.sqrt(s["s"] / (1.0 - b2**t)) + eps)


def adabelief(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_belief(g, p, s, t, **numbers)


def scale_by_acprop(g, p, s, t, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    # Zhuang et al. 2021: the gradient over the root of s_{t−1}, which is then updated.
    u = g / ((math.sqrt(1.0) if t == 1 else np.sqrt(s["s"] / (1.0 - b2 ** (t - 1)))) + eps)
    s["s"] = b2 * s.get("s", 0.0) + (1.0 - b2) * (g - s.get("m", 0.0)) ** 2 + eps_root
    _mean(g, s, "m", b1)
    return np.clip(u, -1e4, 1e4)


def acprop(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_acprop(g, p, s, t, **numbers) + weight_decay * p)


def scale_by_yogi(g, p, s, t, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6):
    # Zaheer et al. 2018, Algorithm 2, with optax's start and corrections.
    start = np.full_like(g, initial_accumulator_value)
    s["m"] = b1 * s.get("m", start) + (1.0 - b1) * g
    v = s.get("v", start)
    s["v"] = v - (1.0 - b2) * np.sign(v - g**2) * g**2
    return s["m"] / (1.0 - b1**t) / (np.sqrt(s["v"] / (1.0 - b2**t) + eps_root) + eps)


def yogi(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_yogi(g, p, s, t, **numbers)


def scale_by_radam(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, nesterov=False):
    # Liu et al. 2020, Algorithm 2. ρ_t = ρ∞ − 2tβᵗ/(1 − βᵗ) is 1 + 2 Σ kβᵏ / Σ βᵏ, k < t (their section 4.1
    # takes the moving average's centre of mass), a sum without cancellation.
    m, v = _mean(g, s, "m", b1), _mean(g**2, s, "v", b2)
    powers = b2 ** np.arange(t)
    rho = 1.0 + 2.0 * np.sum(np.arange(t) * powers) / np.sum(powers)
    end = 2.0 / (1.0 - b2) - 1.0
    m_hat = _ahead(g, m, t, b1, nesterov)
    if rho < threshold:
        return m_hat
    r = math.sqrt((rho - 4.0) * (rho - 2.0) * end / ((end - 4.0) * (end - 2.0) * rho))
    return r * m_hat / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)


def radam(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_radam(g, p, s, t, **numbers)


# Changes of the gradient -------------------------------------------------------------------------


def _change(g, s):
    change = g - s.get("g", g)
    s["g"] = g
    return change


def scale_by_optimistic_gradient(g, p, s, t, alpha=1.0, beta=1.0):
    # Mokhtari et al. 2020, generalized OGDA: (α + β)g_t − βg_{t−1}.
    return alpha * g + beta * _change(g, s)


def optimistic_gradient_descent(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_optimistic_gradient(g, p, s, t, **numbers)


def optimistic_adam_v2(
    g, p, s, t, learning_rate, alpha=1.0, beta=1.0, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=True
):
    m, v = _mean(g, s, "m", b1), _mean(g**2, s, "v", b2)
    u = _ahead(g, m, t, b1, nesterov) / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)
    return -learning_rate * scale_by_optimistic_gradient(u, p, s, t, alpha, beta)


def scale_by_adan(g, p, s, t, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    # Xie et al. 2024, Algorithm 1, in whose symbols b1 = 1 − β₁ and so on.
    beta1, beta2, beta3 = 1.0 - b1, 1.0 - b2, 1.0 - b3
    change = _change(g, s)
    s["m"] = (1.0 - beta1) * s.get("m", 0.0) + beta1 * g
    s["v"] = (1.0 - beta2) * s.get("v", 0.0) + beta2 * change
    s["n"] = (1.0 - beta3) * s.get("n", 0.0) + beta3 * (g + (1.0 - beta2) * change) ** 2
    m, v, n = s["m"] / (1.0 - b1**t), s["v"] / (1.0 - b2**t), s["n"] / (1.0 - b3**t)
    return (m + (1.0 - beta2) * v) / (np.sqrt(n + eps_root) + eps)


def adan(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_adan(g, p, s, t, **numbers) + weight_decay * p)


def scale_by_mars(g, p, s, t, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025, max_norm=1.0):
    # Yuan et al. 2025, Algorithm 2, with the gradient of the last step for that of the last point.
    c = g + gamma * b1 / (1.0 - b1) * _change(g, s)
    norm = _norm(c)
    return _adam(c / norm * max_norm if norm > max_norm else c, s, t, b1, b2, eps)


def mars(
    g, p, s, t, learning_rate, weight_decay=0.0, eps=1e-8, adam_learning_rate=None, adam_b1=0.9, adam_b2=0.95,
    adam_weight_decay=0.1, **numbers,
):  # fmt: skip
    if np.ndim(g) == 2:
        return -learning_rate * (scale_by_mars(g, p, s, t, eps=eps, **numbers) + weight_decay * p)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    return -rate * (_adam(g, s, t, adam_b1, adam_b2, eps) + adam_weight_decay * p)


# Normalised, then averaged -----------------------------------------------------------------------


def scale_by_adopt(
    g, p, s, t, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True, clip_value_fn=None
):  # fmt: skip
    # Taniguchi et al. 2024, Algorithm 2, with t from 0 as there.
    t = t - 1
    if t == 0:
        s["v"], s["m"] = g**2, np.zeros_like(g)
        return np.zeros_like(g)
    bound = t**0.25 if clip_value_fn is None else clip_value_fn
    x = g / np.maximum(np.sqrt(s["v"]), eps)
    x = np.clip(x, -bound, bound) if use_clipping else x
    s["v"] = b2 * s["v"] + (1.0 - b2) * g**2
    m = _mean(x, s, "m", b1)
    return b1 * m + (1.0 - b1) * x if nesterov else m


def adopt(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_adopt(g, p, s, t, **numbers)


def scale_by_laprop(g, p, s, t, b1=0.9, b2=0.999, eps=1e-15):
    # Ziyin et al. 2020, Algorithm 1, with the rate outside.
    n = _mean(g**2, s, "n", b2)
    return _mean(g / (np.sqrt(n / (1.0 - b2**t)) + eps), s, "m", b1) / (1.0 - b1**t)


def laprop(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_laprop(g, p, s, t, **numbers) + weight_decay * p)


def scale_by_novograd(g, p, s, t, b1=0.9, b2=0.25, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    # Ginsburg et al. 2019, Algorithm 1: v₁ = ‖g₁‖², m₁ = g₁/√v₁ + dw₁.
    square = _norm(g) ** 2
    s["v"] = square if t == 1 else b2 * s["v"] + (1.0 - b2) * square
    s["m"] = b1 * s.get("m", 0.0) + g / (math.sqrt(s["v"] + eps_root) + eps) + weight_decay * p
    return s["m"]


def novograd(g, p, s, t, learning_rate, eps=1e-6, **numbers):
    return -learning_rate * scale_by_novograd(g, p, s, t, eps=eps, **numbers)


# Two first moments -------------------------------------------------------------------------------


def scale_by_ademamix(g, p, s, t, b1=0.9, b2=0.999, b3=0.9999, alpha=6.0, eps=1e-8, eps_root=0.0):
    # Pagliardini et al. 2025, Algorithm 1.
    m1, m2, v = _mean(g, s, "m1", b1), _mean(g, s, "m2", b3), _mean(g**2, s, "v", b2)
    return (m1 / (1.0 - b1**t) + alpha * m2) / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)


def ademamix(g, p, s, t, learning_rate, alpha=5.0, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_ademamix(g, p, s, t, alpha=alpha, **numbers) + weight_decay * p)


def scale_by_simplified_ademamix(g, p, s, t, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0):
    # Morwani et al. 2025, Algorithm 2.
    s["m"] = b1 * s.get("m", 0.0) + g
    v = _mean(g**2, s, "v", b2)
    return (s["m"] + alpha * g) / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)


def simplified_ademamix(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return -learning_rate * (scale_by_simplified_ademamix(g, p, s, t, **numbers) + weight_decay * p)


# Others ------------------------------------------------------------------------------------------


def scale_by_rprop(g, p, s, t, learning_rate, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0):
    # Riedmiller and Braun 1993, in the form that does not go back (Igel and Hüsken 2000, Rprop⁻ with rest).
    before, size = s.get("g", np.zeros_like(g)), s.get("size", np.full_like(g, learning_rate))
    size = np.where(before * g > 0, np.clip(size * eta_plus, min_step_size, max_step_size), size)
    size = np.where(before * g < 0, np.clip(size * eta_minus, min_step_size, max_step_size), size)
    s["g"], s["size"] = np.where(before * g < 0, 0.0, g), size
    s["ratio"], s["sign"] = size / learning_rate, np.sign(s["g"])
    return size * np.sign(s["g"])


def rprop(g, p, s, t, learning_rate, **numbers):
    return -scale_by_rprop(g, p, s, t, learning_rate, **numbers)


def scale_by_madgrad(g, p, s, t, learning_rate, momentum=0.9, eps=1e-6):
    # Defazio and Jelassi 2021, Algorithm 1, with k from 0: λ_k = γ_k √(k + 1).
    x0, weight = s.setdefault("x0", p), (learning_rate + eps) * math.sqrt(t)
    s["s"] = s.get("s", 0.0) + weight * g
    s["nu"] = s.get("nu", 0.0) + weight * g**2
    z = x0 - s["s"] / (np.cbrt(s["nu"]) + eps)
    return (1.0 - momentum) * z + momentum * p - p


def madgrad(g, p, s, t, learning_rate, weight_decay=0.0, **numbers):
    return scale_by_madgrad(g + weight_decay * p, p, s, t, learning_rate, **numbers)


def scale_by_smooth_lion(g, p, s, t, b1=0.9, b2=0.99, smooth_beta=1.0):
    c = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    _mean(g, s, "m", b2)
    return np.tanh(smooth_beta * c)


def scale_by_refined_lion(g, p, s, t, b1=0.9, b2=0.99):
    c = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    _mean(g, s, "m", b2)
    return np.where(np.abs(c) < 1.0, c, np.sign(c))


def scale_by_stable_adam(g, p, s, t, b1=0.9, b2=0.99, eps=1e-6):
    # Wortsman et al. 2023, Algorithm 2, with its decays β̂ᵢ = βᵢ(1 − βᵢᵗ⁻¹)/(1 − βᵢᵗ).
    b1_t = b1 * (1.0 - b1 ** (t - 1)) / (1.0 - b1**t)
    b2_t = b2 * (1.0 - b2 ** (t - 1)) / (1.0 - b2**t)
    v, u = _mean(g, s, "v_hat", b1_t), _mean(g**2, s, "u_hat", b2_t)
    s["m"], s["v"] = v * (1.0 - b1**t), u * (1.0 - b2**t)
    rms = math.sqrt(np.mean(g**2 / np.maximum(u, eps**2)))
    return v / (np.sqrt(u) + eps) / max(1.0, rms)


def stable_adamw(g, p, s, t, learning_rate, weight_decay=1e-2, **numbers):
    return -learning_rate * (scale_by_stable_adam(g, p, s, t, **numbers) + weight_decay * p)


# Decay and caution -------------------------------------------------------------------------------


def scale_with_corrected_decay(g, p, s, t, learning_rate, weight_decay, max_learning_rate=None):
    # Defazio 2025: x ← x − γ_t (u + (γ_t / γ_max) λ x).
    s["peak"] = max(s.get("peak", 0.0), learning_rate)
    top = s["peak"] if max_learning_rate is None else max_learning_rate
    return -learning_rate * g - learning_rate**2 / top * weight_decay * p


def adamc(
    g, p, s, t, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4, max_learning_rate=None
):
    m, v = _mean(g, s, "m", b1), _mean(g**2, s, "v", b2)
    u = m / (1.0 - b1**t) / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)
    return scale_with_corrected_decay(u, p, s, t, learning_rate, weight_decay, max_learning_rate)


def add_cautious_decay(g, p, s, t, weight_decay=0.0):
    # Chen et al. 2025, equation 3: the decay is multiplied by I(u ⊙ x ≥ 0).
    return np.where(g * p >= 0, g + weight_decay * p, g)


def _cautious(u, g, floor):
    # Liang et al. 2024, Algorithm 1: φ ← I(u ∘ g > 0), the rate times d / (‖φ‖₁ + 1) in the paper and over
    # max(mean φ, 1e-3) in its authors' code.
    agrees = (u * g > 0).astype(float)
    return u * agrees / max(np.mean(agrees), floor)


def cautious_adamw(
    g, p, s, t, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4, nesterov=False, floor=1e-3
):
    m, v = _mean(g, s, "m", b1), _mean(g**2, s, "v", b2)
    u = _ahead(g, m, t, b1, nesterov) / (np.sqrt(v / (1.0 - b2**t) + eps_root) + eps)
    return -learning_rate * (_cautious(u, g, floor) + weight_decay * p)


def cautious_lion(g, p, s, t, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3, floor=1e-3):
    u = np.sign(b1 * s.get("m", 0.0) + (1.0 - b1) * g)
    _mean(g, s, "m", b2)
    return -learning_rate * (_cautious(u, g, floor) + weight_decay * p)
