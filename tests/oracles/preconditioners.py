"""Transcriptions: SOAP, Shampoo, PSGD and other preconditioners."""

import numpy as np

from oracles.classic import adamw

# SOAP --------------------------------------------------------------------------------------------


def _eigenvectors(a):
    """By falling eigenvalue; in the null space by a fixed operator; the largest component is positive."""
    n, a = len(a), a / (np.abs(a).max() or 1.0)
    w, q = np.linalg.eigh(a)
    inside = w > 8 * np.sqrt(n) * np.finfo(float).eps * w[-1]
    outside = np.eye(n) - q[:, inside] @ q[:, inside].T
    ramp = np.diag(np.linspace(1.0, 1.0 / n, n))
    w, q = np.linalg.eigh(a + outside @ ramp @ outside - 3.0 * outside)
    q = q[:, ::-1]
    return q * np.sign(q[np.abs(q).argmax(axis=0), range(n)])


def _orthogonal(a):
    """The orthogonal factor of QR whose triangular factor has a positive diagonal."""
    q, r = np.linalg.qr(a)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def _basis_of_side(s, side, v, axis, first):
    """Algorithm 4: Q ← QR(P Q), the columns sorted by their estimated eigenvalues, and V with them."""
    second, q = s[side], s["Q" + side]
    if first:
        return _eigenvectors(second), v
    order = np.argsort(-np.diag(q.T @ second @ q), kind="stable")
    return _orthogonal(second / np.abs(second).max() @ q[:, order]), np.take(v, order, axis=axis)


def scale_by_soap(
    g, p, s, t, b1=0.95, b2=0.95, shampoo_beta=None, eps=1e-8, precondition_frequency=10, max_precond_dim=10000,
):  # fmt: skip
    # Vyas et al. 2024, Algorithm 3; the first step only builds the basis. A single matrix: its turn is every f steps.
    m, n = g.shape
    if t == 1:
        s |= {"M": np.zeros((m, n)), "V": np.zeros((m, n)), "QL": np.eye(m), "QR": np.eye(n)}
        s |= {"L": np.zeros((m, m)), "R": np.zeros((n, n))}
    beta = b2 if shampoo_beta is None else shampoo_beta
    u = np.zeros((m, n))
    if t > 1:
        h = s["QL"].T @ g @ s["QR"]
        s["M"] = b1 * s["M"] + (1.0 - b1) * h
        s["V"] = b2 * s["V"] + (1.0 - b2) * h**2
        m_hat, v_hat = s["M"] / (1.0 - b1 ** (t - 1)), s["V"] / (1.0 - b2 ** (t - 1))
        u = s["QL"] @ (m_hat / (np.sqrt(v_hat) + eps)) @ s["QR"].T
    s["L"] = beta * s["L"] + (1.0 - beta) * g @ g.T
    s["R"] = beta * s["R"] + (1.0 - beta) * g.T @ g
    if (t - 1) % precondition_frequency == 0:
        momentum = s["QL"] @ s["M"] @ s["QR"].T
        for axis, side in enumerate("LR"):
            if g.shape[axis] <= max_precond_dim:
                s["Q" + side], s["V"] = _basis_of_side(s, side, s["V"], axis, t == 1)
        s["M"] = s["QL"].T @ momentum @ s["QR"]
    return u


def soap(
    g, p, s, t, learning_rate, b1=0.95, b2=0.95, shampoo_beta=None, eps=1e-8, weight_decay=0.01,
    precondition_frequency=10, max_precond_dim=10000,
):  # fmt: skip
    if np.ndim(g) != 2:
        return adamw(g, p, s, t, learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    u = scale_by_soap(g, p, s, t, b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim)
    return -learning_rate * (u + weight_decay * p)
