"""Optimizers that estimate their rate, or read the loss or its curvature."""

import math

import jax
import jax.numpy as jnp
import optax

import jopt
from zoo.cases import DECAYING, FADE, FALL, MASK, Against, Replay, no_bias, on
from zoo.entry import RATE, Entry, rated


def floats(params):
    """The leaves that are trained."""
    return [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]


def summed(terms):
    """Their sum, whatever the leaves' dtypes."""
    return sum((term.astype(jnp.result_type(float)) for term in terms), start=jnp.zeros(()))


def bowl(params):
    """A loss whose Hessian is diagonal: Hutchinson's estimate of it is exact, and so the same under any seed."""
    return summed(jnp.sum(jnp.square(x)) for x in floats(params))


def ravine(params):
    """A loss that couples the elements of an array; products with its Hessian are exact in any order."""

    def weights(x):
        places = (jax.lax.broadcasted_iota(x.dtype, x.shape, axis) for axis in range(x.ndim))
        return sum((place * 3**axis for axis, place in enumerate(places)), start=jnp.ones_like(x)) / 64

    return summed(jnp.square(jnp.sum(weights(x) * x)) for x in floats(params))


def drawn(params, key):
    """A loss that depends on what is drawn."""
    leaves = floats(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    return summed(jnp.sum(n * x) for n, x in zip(noise, leaves, strict=True))


# ⟨m, x⟩ − γ̄, a small difference of two sums over the whole tree, keeps that many roundings fewer.
MODELLED = {"value": True, "ulps": 1024}
# Where the clip does not hold, a small m is divided by γh.
CURVED = {"complex": None, "ulps": 1024, "extra": (("obj_fn", bowl),)}
ESTIMATES = {"complex": None, "random": True, "zero_gradient": False, "elementwise": False}

OPTIMIZERS = {
    "adahessian": rated(jopt.adahessian, **CURVED),
    "cocob": rated(jopt.cocob),
    "dadapt_adamw": rated(jopt.dadapt_adamw),
    "dog": rated(jopt.dog),
    "dowg": rated(jopt.dowg),
    "momo": rated(jopt.momo, **MODELLED),
    "momo_adam": rated(jopt.momo_adam, **MODELLED),
    "momo_adam_adapting": rated(
        lambda rate: jopt.momo_adam(rate, weight_decay=0.1, adapt_lower_bound=True), zero_gradient=False, **MODELLED
    ),
    "momo_adapting": rated(lambda rate: jopt.momo(rate, adapt_lower_bound=True), **MODELLED),
    "polyak_sgd": rated(jopt.polyak_sgd, value=True),
    "prodigy": rated(jopt.prodigy),
    "prodigy_decay": rated(lambda rate: jopt.prodigy(rate, weight_decay=0.1, estim_lr0=0.1), zero_gradient=False),
    "sophia": rated(jopt.sophia, zero_gradient=False, **CURVED),
}

RULES = {
    "gauss_newton_estimator_diag_hessian": Entry(
        lambda: jopt.gauss_newton_estimator_diag_hessian(4), extra=(("sampled_obj_fn", drawn),), **ESTIMATES
    ),
    "hutchinson_estimator_diag_hessian": Entry(
        jopt.hutchinson_estimator_diag_hessian, extra=(("obj_fn", ravine),), **ESTIMATES
    ),
    "scale_by_adahessian": Entry(lambda: jopt.scale_by_adahessian(b2=0.9, hessian_power=0.5), **CURVED),
    "scale_by_cocob": Entry(jopt.scale_by_cocob),
    "scale_by_dadapt_adamw": Entry(jopt.scale_by_dadapt_adamw),
    "scale_by_distance_over_gradients": Entry(jopt.scale_by_distance_over_gradients, elementwise=False),
    "scale_by_dog": Entry(lambda: jopt.scale_by_dog(("learning_rate", 0.01))),
    "scale_by_dowg": Entry(jopt.scale_by_dowg),
    "scale_by_momo": Entry(jopt.scale_by_momo, **MODELLED),
    "scale_by_momo_adam": Entry(jopt.scale_by_momo_adam, **MODELLED),
    "scale_by_polyak": Entry(lambda: jopt.scale_by_polyak(0.1, variant="sps+"), value=True),
    "scale_by_prodigy": Entry(jopt.scale_by_prodigy),
    "scale_by_sophia": Entry(lambda: jopt.scale_by_sophia(update_interval=2, clip_threshold=None), **CURVED),
}

# x₀ − x keeps that many roundings fewer.
WRAPPERS = {
    "mechanize": Entry(lambda: jopt.mechanize(jopt.adam(RATE), s_init=0.01), ulps=1024),
}

# In float32 the distance from x₀ is a few roundings of the parameters at first, and inner products of gradients of
# changing signs cancel: the estimates made of them keep fewer digits.
ESTIMATED = (1e-12, 1e-4)
MASKED = {"kernel": True, "bias": False, "gain": False}
NEAR = (1e-12, 5e-2)
FIRST = (1e-12, 0.5)  # steps begin at 1e-6, where x₀ − x has one digit in float32

ORACLES = [
    Replay("scale_by_dog", tree=True, init_step=("distance", 0.1)),
    Replay("scale_by_dog", tree=True, init_step=("learning_rate", 0.01), eps=1e-3, tolerance=NEAR, slow=True),
    Replay("dog", tree=True, tolerance=NEAR),
    Replay("dog", tree=True, learning_rate=FALL, weight_decay=0.01, init_step=("distance", 0.3), slow=True),
    Replay("scale_by_dowg", tree=True, slow=True),
    Replay("dowg", tree=True),
    Replay("dowg", tree=True, learning_rate=FADE, init_estim_sq_dist=0.1, eps=1e-3, weight_decay=0.01, slow=True),
    Replay("scale_by_distance_over_gradients", reps_rel=1e-3, slow=True),
    Replay("scale_by_distance_over_gradients", reps_rel=0.1, eps=1e-3, global_scale=-2.0, slow=True),
    Replay("scale_by_prodigy", tree=True, estim_lr0=0.1, tolerance=ESTIMATED, slow=True),
    Replay("prodigy", tree=True, tolerance=FIRST),
    Replay(
        "prodigy",
        tree=True,
        learning_rate=FALL,
        beta3=0.99,
        estim_lr0=1e-3,
        estim_lr_coef=2.0,
        weight_decay=0.1,
        safeguard_warmup=True,
        tolerance=ESTIMATED,
        slow=True,
    ),
    Replay("scale_by_dadapt_adamw", tree=True, tolerance=ESTIMATED, slow=True),
    Replay("dadapt_adamw", tree=True, tolerance=ESTIMATED),
    Replay(
        "dadapt_adamw",
        tree=True,
        learning_rate=FALL,
        eps=1e-4,
        estim_lr0=1e-3,
        weight_decay=0.1,
        tolerance=ESTIMATED,
        slow=True,
    ),
    Replay("scale_by_polyak", tree=True, value=True, slow=True),
    Replay("scale_by_polyak", tree=True, value=True, f_min=0.05, max_learning_rate=FALL, eps=0.1, variant="sps+"),
    Replay("polyak_sgd", tree=True, value=True, max_learning_rate=0.01, scaling=FALL),
    Replay("scale_by_momo", tree=True, value=True, lower_bound=-0.2, tolerance=ESTIMATED, slow=True),
    Replay("momo", tree=True, value=True, tolerance=ESTIMATED),
    Replay(
        "momo",
        tree=True,
        value=True,
        learning_rate=FALL,
        beta=0.8,
        lower_bound=-1.0,
        weight_decay=0.1,
        adapt_lower_bound=True,
        tolerance=ESTIMATED,
        slow=True,
    ),
    Replay("scale_by_momo_adam", tree=True, value=True, tolerance=ESTIMATED, slow=True),
    Replay("momo_adam", tree=True, value=True, tolerance=ESTIMATED),
    Replay(
        "momo_adam",
        tree=True,
        value=True,
        learning_rate=FALL,
        b1=0.8,
        b2=0.95,
        lower_bound=-1.0,
        weight_decay=0.1,
        adapt_lower_bound=True,
        tolerance=ESTIMATED,
        slow=True,
    ),
    Replay("mechanize", tree=True, last=True, static={"base_optimizer": jopt.sgd(1.0)}, tolerance=(1e-11, 1e-2)),
    Replay(
        "mechanize",
        tree=True,
        last=True,
        static={"base_optimizer": jopt.sgd(1.0), "num_betas": 3},
        weight_decay=0.1,
        s_init=1e-2,
        tolerance=(1e-11, 1e-3),
        slow=True,
    ),
    Replay("scale_by_cocob", last=True, tolerance=ESTIMATED, slow=True),
    Replay("scale_by_cocob", last=True, alpha=10.0, eps=1e-3, slow=True),
    Replay("cocob", tolerance=ESTIMATED),
    Replay("cocob", learning_rate=FALL, weight_decay=0.01, **on(["kernel"], mask=MASKED), slow=True),
]

SYMBOLS = {
    "mechanize": {"x0": ("x0",)},
    "scale_by_cocob": {"x0": ("w1",), "sum": ("theta",), "scale": ("L",), "sum_abs": ("G",), "reward": ("Reward",)},
    "scale_by_dadapt_adamw": {"mu": ("m",), "nu": ("v",), "grad_sum": ("s",)},
    "scale_by_distance_over_gradients": {"x0": ("x0",), "max_dist": ("r",), "sum_sq": ("G",)},
    "scale_by_dog": {"x0": ("x0",)},
    "scale_by_dowg": {"x0": ("x0",)},
    "scale_by_momo": {"mu": ("m",)},
    "scale_by_momo_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_prodigy": {"mu": ("m",), "nu": ("v",), "grad_sum": ("s",), "x0": ("x0",)},
}

VECTORS = {"kernel": (5, 3), "bias": (5,)}  # optax gives a scalar an axis

OPTAX = [
    Against("prodigy", f32=1e-4),
    Against("prodigy", DECAYING, (0.8, 0.95), 0.9, 1e-5, 1e-3, 2.0, 0.03, True, slow=True),
    Against("dadapt_adamw", f32=1e-4),
    Against("dadapt_adamw", DECAYING, (0.8, 0.95), 1e-5, 1e-3, 0.03, slow=True),
    # optax adds x₀ − Σs Δ − x in this order, and rounds x to do so: in float32 its small updates are 0.
    Against("mechanize", optax.sgd(1.0), f32=math.inf, f64=1e-7),
    Against("mechanize", optax.sgd(1.0), 0.1, 1e-6, 1e-2, 3, f32=math.inf, f64=1e-7, slow=True),
    Against("polyak_sgd", value=True),
    Against("polyak_sgd", 0.5, DECAYING, 0.1, 0.01, "sps+", value=True, slow=True),
    Against("scale_by_polyak", 0.1, 0.5, 0.01, "sps+", value=True, bare=True, slow=True),
    Against("momo", value=True, f32=1e-4),
    Against("momo", DECAYING, 0.8, -1.0, 0.03, True, value=True, f32=1e-4, slow=True),
    Against("momo_adam", value=True, f32=5e-4),
    Against("momo_adam", DECAYING, 0.8, 0.95, 1e-5, -1.0, 0.03, True, value=True, f32=1e-4, slow=True),
    Against("cocob"),
    Against("scale_by_cocob", slow=True),
    Against("cocob", DECAYING, 10.0, 1e-3, 0.03, MASK, slow=True),
    Against("dog"),
    Against("dog", DECAYING, ("distance", 0.1), 1e-4, 0.03, MASK, slow=True),
    Against("dog", 0.5, ("learning_rate", 0.01), slow=True),
    Against("dowg"),
    Against("dowg", DECAYING, 0.1, 1e-3, 0.03, no_bias, slow=True),
    Against("scale_by_distance_over_gradients", only=VECTORS, slow=True, bare=True),
    Against("scale_by_distance_over_gradients", 1e-2, 1e-4, only=VECTORS, slow=True, bare=True),
]

EXCEPTIONS = {
    "sophia": "no verbose, print_win_rate_every_n_steps; hessian_diagonal_fn=None is Hutchinson's",
}

RANDOM = {
    "adahessian": "with losses as functions, in test_curvature.py",
    "gauss_newton_estimator_diag_hessian": "by what it draws, in test_curvature.py",
    "hutchinson_estimator_diag_hessian": "by what it draws, in test_curvature.py",
    "scale_by_adahessian": "with losses as functions, in test_curvature.py",
    "scale_by_sophia": "with losses as functions, in test_curvature.py",
    "sophia": "with losses as functions, in test_curvature.py",
}

UNCOMPARED = {
    "hutchinson_estimator_diag_hessian": "with losses as functions, in test_curvature.py",
    "sophia": "with losses as functions, in test_curvature.py",
}
