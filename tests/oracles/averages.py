"""Transcriptions: averages of the parameters, look-ahead, sharpness, and wrappers."""

# Schedule-Free: Defazio et al. 2024, Algorithm 1 and its form with Adam's denominator.


def _warm(rate, warmup_steps, n):
    return rate if warmup_steps is None else rate * min(n / warmup_steps, 1.0)


def _schedule_free(direction, p, s, gamma, weighing, b1, power):
    s["max"] = max(s.get("max", 0.0), weighing)
    w = s["max"] ** power
    s["sum"] = s.get("sum", 0.0) + w
    c = w / s["sum"] if s["sum"] > 0 else 0.0
    s["z"] = s.get("z", p) - gamma * direction
    s["x"] = (1.0 - c) * s.get("x", p) + c * s["z"]
    return (1.0 - b1) * s["z"] + b1 * s["x"] - p


def schedule_free_sgd(g, p, s, t, learning_rate=1.0, b1=0.9, weight_decay=0.0, weight_lr_power=2.0, warmup_steps=None):
    gamma, weighing = (_warm(learning_rate, warmup_steps, n) for n in (t - 1, t))
    return _schedule_free(g + weight_decay * p, p, s, gamma, weighing, b1, weight_lr_power)


def schedule_free_adamw(g, p, s, t, learning_rate, b1, b2, eps, weight_decay, weight_lr_power, warmup_steps=None):
    gamma, weighing = (_warm(learning_rate, warmup_steps, n) for n in (t - 1, t))
    s["v"] = b2 * s.get("v", 0.0) + (1.0 - b2) * g**2
    direction = g / ((s["v"] / (1.0 - b2**t)) ** 0.5 + eps) + weight_decay * p
    return _schedule_free(direction, p, s, gamma, weighing, b1, weight_lr_power)


def gpa_adamw(g, p, s, t, learning_rate, b1, b2, eps, weight_decay, mu_x, mu_y):
    # Defazio et al. 2025: the three sequences of generalized primal averaging, on AdamW at y.
    s["m"] = b1 * s.get("m", 0.0) + (1.0 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1.0 - b2) * g**2
    adam = s["m"] / (1.0 - b1**t) / ((s["v"] / (1.0 - b2**t)) ** 0.5 + eps)
    s["z"] = s.get("z", p) - learning_rate * (adam + weight_decay * p)
    s["x"] = mu_x * s.get("x", p) + (1.0 - mu_x) * s["z"]
    return mu_y * s["x"] + (1.0 - mu_y) * s["z"] - p


def lookahead(g, p, s, t, sync_period, slow_step_size):
    # Zhang et al. 2019, Algorithm 1, around gradient descent with the rate 1/4.
    slow, fast = s.get("slow", p), p - 0.25 * g
    if t % sync_period == 0:
        slow = fast = slow + slow_step_size * (fast - slow)
    s["slow"] = slow
    return fast - p


def swa(g, p, s, t, start, every):
    # Izmailov et al. 2018, Algorithm 1, around gradient descent with the rate 1/4: a list of models, and its mean.
    w = p - 0.25 * g
    models = s.setdefault("models", [p])
    if t <= start:
        models[:] = [w]
    elif (t - start) % every == 0:
        models.append(w)
    s["mean"] = sum(models) / len(models)
    return -0.25 * g


# Sharpness-aware minimization: Foret et al. 2021, Algorithm 1, one gradient a call, around gradient
# descent with the rate 1/4 and momentum 1/2; the ball has the radius 1/8.


def normalize(g, p, s, t):
    norm = sum(float((x**2).sum()) for x in g.values()) ** 0.5
    return {name: x / norm for name, x in g.items()}


def _sharp(g, p, s, t, sync_period, climb):
    if t % sync_period != 0:
        if t % sync_period == 1:
            s["home"] = dict(p)
        return climb(g)
    momentum = s.get("momentum", dict.fromkeys(p, 0.0))
    s["momentum"] = {name: x + 0.5 * momentum[name] for name, x in g.items()}
    s["home"] = {name: x - 0.25 * s["momentum"][name] for name, x in s["home"].items()}
    return {name: x - p[name] for name, x in s["home"].items()}


def sam(g, p, s, t, sync_period):
    return _sharp(g, p, s, t, sync_period, lambda g: {n: 0.125 * x for n, x in normalize(g, p, s, t).items()})


def asam(g, p, s, t, rho, eta):
    # Kwon et al. 2021, with T = |w| + η.
    def climb(g):
        size = {name: abs(x) + eta for name, x in p.items()}
        norm = sum(float(((size[name] * x) ** 2).sum()) for name, x in g.items()) ** 0.5
        return {name: rho * size[name] ** 2 * x / norm for name, x in g.items()}

    return _sharp(g, p, s, t, 2, climb)
