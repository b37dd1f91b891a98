"""L-BFGS and the dense quasi-Newton updates, for a function and its gradient."""

import numpy as np


def lbfgs_direction(g, pairs, gamma):
    # Nocedal and Wright 2006, algorithm 7.4; pairs (s, y), the oldest first.
    q, kept = np.array(g, np.float64), []
    for s, y in reversed(pairs):
        rho = 1.0 / (y @ s)
        alpha = rho * (s @ q)
        q = q - alpha * y
        kept.append((s, y, rho, alpha))
    r = gamma * q
    for s, y, rho, alpha in reversed(kept):
        beta = rho * (y @ r)
        r = r + s * (alpha - beta)
    return r


def lbfgs(f, gradient, x, steps, m, rate):
    """Points of L-BFGS with steps of a fixed length, without a search."""
    x, pairs, points, last = np.array(x, np.float64), [], [], None
    for _ in range(steps):
        g = gradient(x)
        if last is None:
            gamma = min(1.0, 1.0 / np.sqrt(g @ g))
        else:
            s, y = x - last[0], g - last[1]
            pairs, gamma = [*pairs, (s, y)][-m:], (s @ y) / (y @ y)
        last = x, g
        x = x - rate * lbfgs_direction(g, pairs, gamma)
        points.append(x)
    return np.stack(points)


def backtracking(f, x, u, g, rate, c, shrink, most):
    """Armijo's condition: the first of rate, rate · shrink, ... that meets it."""
    for _ in range(most):
        if f(x + rate * u) <= f(x) + c * rate * (g @ u):
            return rate
        rate *= shrink
    return rate


def broyden_family(h, s, y, phi, tau):
    """The scaled Broyden update of the inverse Hessian, as a formula of matrices."""
    ys, yhy = y @ s, y @ h @ y
    v = np.sqrt(yhy) * (s / ys - h @ y / yhy)
    return (h - np.outer(h @ y, h @ y) / yhy + phi * np.outer(v, v)) / tau + np.outer(s, s) / ys


def ssbroyden_numbers(h, s, y):
    """Urbán, Stefanou and Pons 2025: φ and τ, from b and h of the inverse Hessian itself."""
    n = len(s)
    b, k = s @ np.linalg.solve(h, s) / (y @ s), y @ h @ y / (y @ s)
    a = b * k - 1
    c = np.sqrt(a / (1 + a))
    rho = min(1.0, k * (1 - c))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
    sigma = 1 + a * theta
    root, plus = sigma ** (1 / (1 - n)), min(1.0, 1 / b)
    tau = min(plus * root, sigma) if theta <= 0 else plus * min(root, 1 / theta)
    return (1 - theta) / (1 + a * theta), tau
