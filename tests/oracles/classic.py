"""Transcriptions of the classic optimizers, of clipping and of regularization."""

import math

import numpy as np

# Gradient descent and momentum -------------------------------------------------------------------


def identity(g, p, s, t):
    return g


def set_to_zero(g, p, s, t):
    return 0.0 * g


def scale(g, p, s, t, step_size):
    return step_size * g


def scale_by_schedule(g, p, s, t, step_size_fn):
    return step_size_fn * g


def scale_by_learning_rate(g, p, s, t, learning_rate, flip_sign=True):
    return -learning_rate * g if flip_sign else learning_rate * g


def trace(g, p, s, t, decay, nesterov=False):
    # Sutskever et al. 2013, with velocity v = −γb and the parameters at the look-ahead point.
    s["b"] = decay * s.get("b", 0.0) + g
    return decay * s["b"] + g if nesterov else s["b"]


def nesterov_trace(g, p, s, t, decay):
    return trace(g, p, s, t, decay, nesterov=True)


def sgd(g, p, s, t, learning_rate, momentum=0.0, nesterov=False):
    return -learning_rate * trace(g, p, s, t, momentum, nesterov)


def momentum(g, p, s, t, learning_rate, momentum=0.9):
    return sgd(g, p, s, t, learning_rate, momentum)


def nesterov(g, p, s, t, learning_rate, momentum=0.9):
    return sgd(g, p, s, t, learning_rate, momentum, nesterov=True)


def scale_by_ema(g, p, s, t, decay, debias=True):
    s["m"] = decay * s.get("m", 0.0) + (1.0 - decay) * g
    return s["m"] / (1.0 - decay**t) if debias else s["m"]


def average_params(u, p, s, t, decay):
    # Polyak's average in its exponential form, of the parameters after the step.
    s["average"] = decay * s.get("average", p) + (1.0 - decay) * (p + u)
    return u


# AdaGrad, RMSProp, AdaDelta ----------------------------------------------------------------------


def scale_by_root_sum(g, p, s, t, initial_accumulator_value=0.0, eps=1e-10):
    # Duchi et al. 2011, diagonal: H = diag(‖g_{1:t,i}‖₂), with the δ that keeps it invertible outside.
    s["G"] = s.get("G", initial_accumulator_value) + g**2
    return g / (np.sqrt(s["G"]) + eps)


def scale_by_rss(g, p, s, t, initial_accumulator_value=0.1, eps=1e-7):
    s["G"] = s.get("G", initial_accumulator_value) + g**2
    return np.divide(g, np.sqrt(s["G"] + eps), out=np.zeros_like(g), where=s["G"] > 0)


def adagrad(g, p, s, t, learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    return -learning_rate * scale_by_rss(g, p, s, t, initial_accumulator_value, eps)


def scale_by_rms(g, p, s, t, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False):
    # Tieleman and Hinton 2012: MeanSquare(w, t) = 0.9 MeanSquare(w, t−1) + 0.1 (∂E/∂w)².
    s["r"] = decay * s.get("r", initial_scale) + (1.0 - decay) * g**2
    r = s["r"] / (1.0 - decay**t) if bias_correction else s["r"]
    return g / np.sqrt(r + eps) if eps_in_sqrt else g / (np.sqrt(r) + eps)


def scale_by_stddev(g, p, s, t, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False):
    # Graves 2013, equations 38 to 40: n the mean square, m the mean, n − m² the variance.
    s["n"] = decay * s.get("n", initial_scale) + (1.0 - decay) * g**2
    s["m"] = decay * s.get("m", 0.0) + (1.0 - decay) * g
    c = 1.0 - decay**t if bias_correction else 1.0
    variance = np.maximum(s["n"] / c - (s["m"] / c) ** 2, 0.0)
    return g / np.sqrt(variance + eps) if eps_in_sqrt else g / (np.sqrt(variance) + eps)


def rmsprop(g, p, s, t, learning_rate, centered=False, momentum=0.0, nesterov=False, **numbers):
    scaled = scale_by_stddev(g, p, s, t, **numbers) if centered else scale_by_rms(g, p, s, t, **numbers)
    # Graves has the rate inside the momentum: Δᵢ = 0.9 Δᵢ − γ εᵢ / √(...).
    s["d"] = momentum * s.get("d", 0.0) - learning_rate * scaled
    return momentum * s["d"] - learning_rate * scaled if nesterov else s["d"]


def scale_by_adadelta(g, p, s, t, rho=0.9, eps=1e-6):
    # Zeiler 2012, Algorithm 1: Δx = −RMS[Δx]_{t−1} / RMS[g]_t · g_t.
    s["Eg2"] = rho * s.get("Eg2", 0.0) + (1.0 - rho) * g**2
    dx = -np.sqrt(s.get("Edx2", 0.0) + eps) / np.sqrt(s["Eg2"] + eps) * g
    s["Edx2"] = rho * s.get("Edx2", 0.0) + (1.0 - rho) * dx**2
    return -dx


def adadelta(g, p, s, t, learning_rate=-1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    return -learning_rate * scale_by_adadelta(g + weight_decay * p, p, s, t, rho, eps)


# Adam and its family -----------------------------------------------------------------------------


def _moments(g, s, b1, b2):
    s["m"] = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1.0 - b2) * g**2


def scale_by_adam(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False):
    # Kingma and Ba 2015, Algorithm 1.
    if nesterov:
        return scale_by_nadam(g, p, s, t, b1, b2, eps, eps_root)
    _moments(g, s, b1, b2)
    m_hat, v_hat = s["m"] / (1.0 - b1**t), s["v"] / (1.0 - b2**t)
    return m_hat / (np.sqrt(v_hat + eps_root) + eps)


def scale_by_uncorrected_adam(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    _moments(g, s, b1, b2)
    return s["m"] / (np.sqrt(s["v"] + eps_root) + eps)


def scale_by_nadam(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    # Dozat 2016, Algorithm 2, with a constant μ = b1.
    _moments(g, s, b1, b2)
    m_bar = b1 * s["m"] / (1.0 - b1 ** (t + 1)) + (1.0 - b1) * g / (1.0 - b1**t)
    return m_bar / (np.sqrt(s["v"] / (1.0 - b2**t) + eps_root) + eps)


def scale_by_amsgrad(
    g, p, s, t, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, bias_correction_mu=True, bias_correction_nu=True
):
    # Reddi et al. 2018, Algorithm 2, which has neither correction.
    _moments(g, s, b1, b2)
    m = s["m"] / (1.0 - b1**t) if bias_correction_mu else s["m"]
    v = s["v"] / (1.0 - b2**t) if bias_correction_nu else s["v"]
    s["v_hat"] = np.maximum(s.get("v_hat", 0.0), v)
    return m / (np.sqrt(s["v_hat"] + eps_root) + eps)


def scale_by_adamax(g, p, s, t, b1=0.9, b2=0.999, eps=1e-8):
    # Kingma and Ba 2015, Algorithm 2: u_t = max(β₂ u_{t−1}, |g_t|), with optax's ε.
    s["m"] = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    s["u"] = np.maximum(b2 * s.get("u", 0.0), np.abs(g) + eps)
    return s["m"] / ((1.0 - b1**t) * s["u"])


def adam(g, p, s, t, learning_rate, bias_correction=True, **numbers):
    rule = scale_by_adam if bias_correction else scale_by_uncorrected_adam
    return -learning_rate * rule(g, p, s, t, **numbers)


def adamw(g, p, s, t, learning_rate, weight_decay=1e-4, **numbers):
    # Loshchilov and Hutter 2019, Algorithm 2, line 12, where the schedule multiplies the decay too.
    return -learning_rate * (scale_by_adam(g, p, s, t, **numbers) + weight_decay * p)


def nadam(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_nadam(g, p, s, t, **numbers)


def nadamw(g, p, s, t, learning_rate, weight_decay=1e-4, **numbers):
    return -learning_rate * (scale_by_nadam(g, p, s, t, **numbers) + weight_decay * p)


def amsgrad(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_amsgrad(g, p, s, t, **numbers)


def adamax(g, p, s, t, learning_rate, **numbers):
    return -learning_rate * scale_by_adamax(g, p, s, t, **numbers)


def adamaxw(g, p, s, t, learning_rate, weight_decay=1e-4, **numbers):
    return -learning_rate * (scale_by_adamax(g, p, s, t, **numbers) + weight_decay * p)


# Signs -------------------------------------------------------------------------------------------


def scale_by_sign(g, p, s, t):
    s["argument"], s["terms"] = g, np.abs(g)
    return np.sign(g)


def scale_by_lion(g, p, s, t, b1=0.9, b2=0.99):
    # Chen et al. 2023, Algorithm 2.
    c = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    size = s.get("|m|", 0.0)
    s["argument"], s["terms"] = c, b1 * size + (1.0 - b1) * np.abs(g)
    s["m"], s["|m|"] = b2 * s.get("m", 0.0) + (1.0 - b2) * g, b2 * size + (1.0 - b2) * np.abs(g)
    return np.sign(c)


def lion(g, p, s, t, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    return -learning_rate * (scale_by_lion(g, p, s, t, b1, b2) + weight_decay * p)


def sign_sgd(g, p, s, t, learning_rate):
    return -learning_rate * scale_by_sign(g, p, s, t)


def signum(g, p, s, t, learning_rate, beta=0.9):
    # Bernstein et al. 2018, Algorithm 2.
    s["m"] = beta * s.get("m", 0.0) + (1.0 - beta) * g
    s["argument"] = s["m"]
    s["terms"] = beta * s.get("terms", 0.0) + (1.0 - beta) * np.abs(g)
    return -learning_rate * np.sign(s["m"])


# Layer-wise norms --------------------------------------------------------------------------------


def _norm(*arrays):
    return math.sqrt(math.fsum(float(x) ** 2 for a in arrays for x in np.ravel(a)))


def scale_by_trust_ratio(g, p, s, t, min_norm=0.0, trust_coefficient=1.0, eps=0.0):
    # You et al. 2017, equation 6, with one norm for the whole direction, decay included.
    p_norm, g_norm = max(_norm(p), min_norm), max(_norm(g), min_norm)
    return g if p_norm == 0 or g_norm == 0 else g * trust_coefficient * p_norm / (g_norm + eps)


def lars(g, p, s, t, learning_rate, weight_decay=0.0, trust_coefficient=0.001, eps=0.0, momentum=0.9, nesterov=False):
    # You et al. 2017, Algorithm 1: v ← m v + γ λˡ (∇ + β w), w ← w − v.
    step = learning_rate * scale_by_trust_ratio(g + weight_decay * p, p, s, t, 0.0, trust_coefficient, eps)
    s["b"] = momentum * s.get("b", 0.0) - step
    return momentum * s["b"] - step if nesterov else s["b"]


def lamb(g, p, s, t, learning_rate, weight_decay=0.0, eps=1e-6, **numbers):
    # You et al. 2020, Algorithm 2, with φ the identity.
    r = scale_by_adam(g, p, s, t, eps=eps, **numbers) + weight_decay * p
    return -learning_rate * scale_by_trust_ratio(r, p, s, t)


def normalize_by_update_norm(g, p, s, t, scale_factor=1.0, eps=1e-6):
    factor = scale_factor / (_norm(*g.values()) + eps)
    return {name: factor * x for name, x in g.items()}


# Clipping and cleaning ---------------------------------------------------------------------------


def clip(g, p, s, t, max_delta):
    return np.minimum(np.maximum(g, -max_delta), max_delta)


def clip_by_global_norm(g, p, s, t, max_norm):
    # Pascanu et al. 2013, Algorithm 1.
    norm = _norm(*g.values())
    return {name: x * (max_norm / norm) for name, x in g.items()} if norm > max_norm else g


def clip_by_block_rms(g, p, s, t, threshold):
    # Shazeer and Stern 2018, section 6.
    return g / max(1.0, _norm(g) / math.sqrt(g.size) / threshold)


def _per_unit(x, y, new_unit):
    """Rebuild x from its units (the weights into one output), each with its partner in y."""
    if np.ndim(x) < 2:
        return new_unit(x, y)
    return np.stack([new_unit(x[..., i], y[..., i]) for i in range(x.shape[-1])], axis=-1)


def adaptive_grad_clip(g, p, s, t, clipping, eps=1e-3):
    # Brock et al. 2021, equation 3.
    def clipped(g, p):
        most = clipping * max(_norm(p), eps)
        return g * (most / _norm(g)) if _norm(g) > most else g

    return _per_unit(g, p, clipped)


def zero_nans(g, p, s, t):
    return np.where(g != g, 0.0, g)


def centralize(g, p, s, t):
    # Yong et al. 2020, equation 1.
    if np.ndim(g) < 2:
        return g
    return np.stack([row - math.fsum(np.ravel(row)) / row.size for row in g])


# Regularisation ----------------------------------------------------------------------------------


def add_decayed_weights(g, p, s, t, weight_decay=0.0):
    return g + weight_decay * p


def add_l1_subgradient(g, p, s, t, l1):
    return g + l1 * np.sign(p)


def soft_threshold(u, p, s, t, l1, step_size):
    # Beck and Teboulle 2009, equation 1.5: T_α(x)ᵢ = (|xᵢ| − α)₊ sgn(xᵢ).
    x = p + u
    return np.where(np.abs(x) > l1 * step_size, x - l1 * step_size * np.sign(x), 0.0) - p


def keep_params_nonnegative(u, p, s, t):
    return np.maximum(p + u, 0.0) - p


def clip_params(u, p, s, t, low, high):
    return np.minimum(np.maximum(p + u, low), high) - p


def max_norm_constraint(u, p, s, t, max_norm):
    # Srivastava et al. 2014, section 5.1: ‖w‖₂ ≤ c by projection.
    def inside(x, _):
        return x * (max_norm / _norm(x)) if _norm(x) > max_norm else x

    return _per_unit(p + u, p, inside) - p


def reduce_on_plateau(
    g, p, s, t, value, factor=0.1, patience=10, rtol=1e-4, atol=0.0, cooldown=0, accumulation_size=1, min_scale=0.0
):
    seen = s.setdefault("seen", [])
    seen.append(value)
    scale = s.get("scale", 1.0)
    if len(seen) == accumulation_size:
        mean = sum(seen) / len(seen)
        seen.clear()
        best, wait, rest = s.get("best", math.inf), s.get("wait", 0), s.get("rest", 0)
        improved = best == math.inf or mean < best - rtol * abs(best) - atol
        best, wait = (mean, 0) if improved else (best, wait + 1)
        if rest > 0:
            wait, rest = 0, rest - 1
        elif wait >= patience:
            scale, wait, rest = max(scale * factor, min(min_scale, scale)), 0, cooldown
        s["best"], s["wait"], s["rest"], s["scale"] = best, wait, rest, scale
    return {name: scale * x for name, x in g.items()}
