"""Optimizers that take a matrix as a matrix."""

import math

import numpy as np

from oracles import classic

DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def _norm(x):
    return math.sqrt(float(np.sum(np.square(x))))


def _scaled(x, preconditioning, eps):
    """Boissin et al. 2025 (aol), Grishina et al. 2025 (schatten)."""
    if preconditioning == "spectral":
        return x / (np.linalg.svd(x, compute_uv=False)[0] + eps)
    x = x / (_norm(x) + eps)
    if preconditioning == "schatten":
        return x / np.sum(np.linalg.svd(x, compute_uv=False) ** 4) ** 0.25 if np.any(x) else x
    if preconditioning == "aol":
        rows = np.abs(x @ x.T).sum(axis=1, keepdims=True)
        return x / np.sqrt(np.where(rows > 0, rows, 1.0))
    return x


def _newton_schulz(x, coefficients, steps, eps, preconditioning="frobenius"):
    if x.shape[0] > x.shape[1]:
        return _newton_schulz(x.T, coefficients, steps, eps, preconditioning).T
    x = _scaled(x, preconditioning, eps)
    for i in range(steps):
        a, b, c = coefficients[i] if np.ndim(coefficients) == 2 else coefficients
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x


def _momentum(g, s, t, beta, nesterov):
    s["m"] = beta * s.get("m", 0.0) + (1.0 - beta) * g
    if nesterov:
        return beta * s["m"] / (1.0 - beta ** (t + 1)) + (1.0 - beta) * g / (1.0 - beta**t)
    return s["m"] / (1.0 - beta**t)


def scale_by_muon(
    g, p, s, t, ns_coeffs=(3.4445, -4.7750, 2.0315), ns_steps=5, beta=0.95, eps=1e-8, nesterov=True, adaptive=False,
    preconditioning="frobenius",
):  # fmt: skip
    # Jordan et al. 2024, with optax's averaged and corrected momentum.
    m_hat = _momentum(g, s, t, beta, nesterov)
    o = _newton_schulz(m_hat, DION if ns_coeffs == "dion" else ns_coeffs, ns_steps, eps, preconditioning)
    return np.sum(m_hat * o) * o if adaptive else o


def scale_by_shape(g, p, s, t, consistent_rms=None):
    rows, columns = g.shape  # inputs, outputs: the transpose of torch's weights
    factor = math.sqrt(max(1.0, columns / rows)) if consistent_rms is None else consistent_rms * math.sqrt(max(g.shape))
    return factor * g


def muon(
    g, p, s, t, learning_rate, weight_decay=0.0, consistent_rms=None, eps=1e-8, nesterov=True, adam_b1=0.9,
    adam_b2=0.999, adam_eps_root=0.0, adam_weight_decay=0.0, adam_learning_rate=None, **numbers,
):  # fmt: skip
    if np.ndim(g) == 2:
        o = scale_by_muon(g, p, s, t, eps=eps, nesterov=nesterov, **numbers)
        return -learning_rate * (scale_by_shape(o, p, s, t, consistent_rms) + weight_decay * p)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    a = classic.scale_by_adam(g, p, s, t, adam_b1, adam_b2, eps, adam_eps_root, nesterov)
    return -rate * (a + adam_weight_decay * p)


# NorMuon -----------------------------------------------------------------------------------------


def scale_by_normuon(g, p, s, t, b2=0.95, beta=0.95, eps=1e-8, eps_root=1e-8, nesterov=True, **numbers):
    # Li et al. 2025, algorithm 1, transposed: kernels are (inputs, outputs); the norm of O is kept.
    numbers = {"ns_coeffs": (3.4445, -4.7750, 2.0315), "ns_steps": 5} | numbers
    o = _newton_schulz(_momentum(g, s, t, beta, nesterov), numbers["ns_coeffs"], numbers["ns_steps"], eps)
    s["v"] = b2 * s.get("v", 0.0) + (1.0 - b2) * np.mean(o**2, axis=0)
    evened = o / (np.sqrt(s["v"]) + eps_root)
    return evened * (_norm(o) / _norm(evened)) if np.any(o) else o


def normuon(
    g, p, s, t, learning_rate, weight_decay=0.0, consistent_rms=None, eps=1e-8, nesterov=True, adam_b1=0.9,
    adam_b2=0.999, adam_weight_decay=0.0, adam_learning_rate=None, **numbers,
):  # fmt: skip
    if np.ndim(g) == 2:
        o = scale_by_normuon(g, p, s, t, eps=eps, nesterov=nesterov, **numbers)
        return -learning_rate * (scale_by_shape(o, p, s, t, consistent_rms) + weight_decay * p)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    a = classic.scale_by_adam(g, p, s, t, adam_b1, adam_b2, eps, 0.0, nesterov)
    return -rate * (a + adam_weight_decay * p)


# Scion: Pethick et al. 2025, table 2, transposed ---------------------------------------------------


def spectral_lmo(g, p, s, t, radius=1.0, ns_coeffs=(3.4445, -4.7750, 2.0315), ns_steps=5, eps=1e-8):
    rows, columns = g.shape
    return radius * math.sqrt(columns / rows) * _newton_schulz(g, ns_coeffs, ns_steps, eps)


def sign_lmo(g, p, s, t, radius=1.0):
    s["argument"], s["terms"] = g, np.abs(g)
    return radius * np.sign(g) / (g.shape[0] if np.ndim(g) > 1 else 1)


def rms_lmo(g, p, s, t, radius=1.0):
    size = math.sqrt(float(np.mean(np.square(g))))
    return radius * g / size if size > 0 else g


def scion(g, p, s, t, learning_rate, decay=0.9, radius=50.0, other_radius=1.0, constrained=False):
    s["m"] = decay * s.get("m", 0.0) + (1.0 - decay) * g
    step = spectral_lmo(s["m"], p, s, t, radius) if np.ndim(g) == 2 else rms_lmo(s["m"], p, s, t, other_radius)
    return -learning_rate * (step + (p if constrained else 0.0))


def scale_by_galore(g, p, s, t, rank=128, update_proj_gap=200, scale=1.0, b1=0.9, b2=0.999, eps=1e-8):
    # Zhao et al. 2024, Algorithm 2, with the shorter side first; a column of P has its largest component positive.
    if g.shape[0] > g.shape[1]:
        turned = {name: x.T if name in "MV" else x for name, x in s.items()}
        u = scale_by_galore(g.T, p, turned, t, rank, update_proj_gap, scale, b1, b2, eps).T
        s |= {name: x.T if name in "MV" else x for name, x in turned.items()}
        return u
    r = min(rank, len(g))
    s.setdefault("P", np.eye(len(g))[:, :r])
    if (t - 1) % update_proj_gap == 0 and np.any(g):
        columns = np.linalg.svd(g)[0].T[:r]
        s["P"] = np.stack([c if c[np.argmax(np.abs(c))] > 0 else -c for c in columns], axis=1)
    low = np.einsum("ij,ik->jk", s["P"], g)
    s["M"] = b1 * s.get("M", 0.0) + (1.0 - b1) * low
    s["V"] = b2 * s.get("V", 0.0) + (1.0 - b2) * low**2
    return scale * s["P"] @ (s["M"] / (1.0 - b1**t) / (np.sqrt(s["V"] / (1.0 - b2**t)) + eps))


def galore(g, p, s, t, learning_rate, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8, **numbers):
    if np.ndim(g) != 2:
        return classic.adamw(g, p, s, t, learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    u = scale_by_galore(g, p, s, t, b1=b1, b2=b2, eps=eps, **numbers)
    return -learning_rate * (u + weight_decay * p)
