"""Transcriptions: SOAP, Shampoo, PSGD and other preconditioners."""

import numpy as np

from oracles import classic

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


def _plain(g, s, t):
    return g @ g.T, g.T @ g


def scale_by_soap(
    g, p, s, t, b1=0.95, b2=0.95, shampoo_beta=None, eps=1e-8, precondition_frequency=10, max_precond_dim=10000,
    products=_plain,
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
    left, right = products(g, s, t)
    s["L"], s["R"] = beta * s["L"] + (1.0 - beta) * left, beta * s["R"] + (1.0 - beta) * right
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
        return classic.adamw(g, p, s, t, learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    u = scale_by_soap(g, p, s, t, b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim)
    return -learning_rate * (u + weight_decay * p)


def scale_by_kl_soap(g, p, s, t, kl_eps=1e-4, **numbers):
    # Lin et al. 2025: the factors that minimise KL(E[vec G vec Gᵀ], L ⊗ R), each given the other.
    def inverse(a, q):
        w = np.diag(q.T @ a @ q)
        w = np.maximum(w, kl_eps * w.max())
        return q @ np.diag(1.0 / w) @ q.T

    def products(g, s, t):
        m, n = g.shape
        if t == 1:
            return g @ g.T / n, g.T @ g / m
        return g @ inverse(s["R"], s["QR"]) @ g.T / n, g.T @ inverse(s["L"], s["QL"]) @ g / m

    return scale_by_soap(g, p, s, t, products=products, **numbers)


def kl_soap(g, p, s, t, learning_rate, weight_decay=0.01, b1=0.95, b2=0.95, eps=1e-8, **numbers):
    if np.ndim(g) != 2:
        return classic.adamw(g, p, s, t, learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    u = scale_by_kl_soap(g, p, s, t, b1=b1, b2=b2, eps=eps, **numbers)
    return -learning_rate * (u + weight_decay * p)


# Shampoo -----------------------------------------------------------------------------------------


def _root(a, exponent, eps):
    w, q = np.linalg.eigh(a)
    if w[-1] <= 0.0:
        return np.zeros_like(a)
    return q @ np.diag(np.maximum(w, eps * w[-1]) ** -exponent) @ q.T


def _cuts(n, most):
    """Where a side is cut: pieces of one size, the last one shorter."""
    size = -(-n // -(-n // most))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def scale_by_shampoo(
    g, p, s, t, b1=0.9, b2=0.999, eps=1e-6, grafting="adam", graft_b2=0.999, graft_eps=1e-8,
    precondition_frequency=10, max_preconditioner_size=1024, exponent=None, one_sided=False,
):  # fmt: skip
    # Shi et al. 2023, sections 2 and 3; roots are made after the step, so that the first one is the grafted step.
    shape, g = np.shape(g), np.reshape(g, np.shape(g) if np.ndim(g) == 2 else (-1, 1))
    s["M"] = b1 * s.get("M", 0.0) + (1.0 - b1) * g.reshape(shape)
    m = (s["M"] / (1.0 - b1**t)).reshape(g.shape)
    d = m
    if grafting in ("adagrad", "rmsprop", "adam"):
        keep, add = (1.0, 1.0) if grafting == "adagrad" else (graft_b2, 1.0 - graft_b2)
        s["V"] = keep * s.get("V", 0.0) + add * g.reshape(shape) ** 2
        c = 1.0 - graft_b2**t if grafting == "adam" else 1.0
        d = m / (np.sqrt(s["V"].reshape(g.shape) / c) + graft_eps)
    blocks = [(i, j) for i in _cuts(len(g), max_preconditioner_size) for j in _cuts(len(g.T), max_preconditioner_size)]
    u, w, c2 = np.zeros_like(g), 1.0 if b2 == 1.0 else 1.0 - b2, 1.0 if b2 == 1.0 else 1.0 - b2**t
    tall, wide = (max(i.stop - i.start for i, _ in blocks), max(j.stop - j.start for _, j in blocks))
    sides = [side for side, n in (("L", tall), ("R", wide)) if n > 1] or ["L"]
    sides = ["L" if "L" in sides and (tall <= wide or wide == 1) else "R"] if one_sided else sides
    for side, n in (("L", tall), ("R", wide)):
        for x in (side, side + "root") if side in sides else ():
            s.setdefault(x, np.zeros((len(blocks), n, n)))
    for k, (i, j) in enumerate(blocks):
        block, n = np.zeros((tall, wide)), np.zeros((tall, wide))
        block[: i.stop - i.start, : j.stop - j.start], n[: i.stop - i.start, : j.stop - j.start] = g[i, j], m[i, j]
        n = s["Lroot"][k] @ n if "L" in sides else n
        n = n @ s["Rroot"][k] if "R" in sides else n
        u[i, j] = n[: i.stop - i.start, : j.stop - j.start]
        for side, square in (("L", block @ block.T), ("R", block.T @ block)):
            if side in sides:
                s[side] = s[side].copy()
                s[side][k] = b2 * s[side][k] + w * square
    if (t - 1) % precondition_frequency == 0:
        e = exponent or 0.5 / len(sides)
        for side in sides:
            s[side + "root"] = np.stack([_root(a / c2, e, eps) for a in s[side]])
    if t == 1:
        u = 0.0 * g if grafting == "none" else d
    elif grafting != "none":
        u = u * (np.linalg.norm(d) / (np.linalg.norm(u) or 1.0))
    return u.reshape(shape)


def shampoo(
    g, p, s, t, learning_rate, b1=0.9, graft_b2=0.999, graft_eps=1e-8, weight_decay=0.0, momentum=0.0, nesterov=False,
    axes=None, **numbers,
):  # fmt: skip
    if np.ndim(g) != 2 and axes is None:
        return classic.adamw(g, p, s, t, learning_rate, b1=b1, b2=graft_b2, eps=graft_eps, weight_decay=weight_decay)
    n = scale_by_shampoo(g, p, s, t, b1=b1, graft_b2=graft_b2, graft_eps=graft_eps, **numbers)
    s["b"] = momentum * s.get("b", 0.0) + n
    return -learning_rate * ((momentum * s["b"] + n if nesterov else s["b"]) + weight_decay * p)
