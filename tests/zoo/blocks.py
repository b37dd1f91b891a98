"""Factored, block-wise and sign-based optimizers."""

import jax.numpy as jnp

import jopt
from jopt.paths import everything_else
from zoo.cases import (
    DECAYING,
    FADE,
    FALL,
    LEAVES,
    MASK,
    MATRICES,
    RISE,
    Against,
    Replay,
    on,
)
from zoo.entry import RATE, Entry, rated

NATIVE = {"elementwise": False, "complex": "native"}
REAL = {"elementwise": False, "complex": None}
PLACES = ("dense", "out/{}")


def slow_memory(step, rate):
    """A decay as a user gives it; float64 under x64."""
    return jnp.minimum(0.9, 1 - (jnp.asarray(step, jnp.result_type(float)) + 1) ** -rate)


OPTIMIZERS = {
    "adafactor": rated(jopt.adafactor, **NATIVE),
    "adafactor_factored": rated(
        lambda rate: jopt.adafactor(rate, 2, momentum=0.9, multiply_by_parameter_scale=False), **NATIVE
    ),
    # Its decay is not multiplied by the rate, so that a rate of zero does not stand still.
    "adafactor_decaying": Entry(lambda: jopt.adafactor(None, 2, weight_decay_rate=0.01), zero_gradient=False, **NATIVE),
    "adam_mini": rated(jopt.adam_mini, **NATIVE),
    "adam_mini_heads": rated(
        lambda rate: jopt.adam_mini(rate, weight_decay=0.01, heads=2, blocks=(("dense/kernel", 0), ("out/*", None))),
        zero_gradient=False,
        reads_paths=True,
        **NATIVE,
    ),
    "came": rated(jopt.came, **REAL),
    "dpsgd": rated(
        lambda rate: jopt.dpsgd(rate, 1.0, 0.5, 0, 0.9), zero_gradient=False, random=True, elementwise=False
    ),
    "fromage": rated(jopt.fromage, elementwise=False, zero_gradient=False),
    "sm3": rated(jopt.sm3, **REAL),
}

# ulps: a step along a sphere is a small difference of two parameters, and rounds as they do.
RULES = {
    "apply_every": Entry(lambda: jopt.apply_every(2)),
    "differentially_private_aggregate": Entry(
        lambda: jopt.differentially_private_aggregate(1.0, 0.5), zero_gradient=False, random=True, elementwise=False
    ),
    "layerwise_decay": Entry(lambda: jopt.layerwise_decay(0.5, 2, PLACES), reads_paths=True),
    "scale_by_adam_mini": Entry(lambda: jopt.scale_by_adam_mini(axis=-1), **NATIVE),
    "scale_by_came": Entry(jopt.scale_by_came, **REAL),
    "scale_by_factored_rms": Entry(jopt.scale_by_factored_rms, complex="native"),
    "scale_by_factored_rms_factored": Entry(lambda: jopt.scale_by_factored_rms(min_dim_size_to_factor=2), **NATIVE),
    "scale_by_hyperball_rate": Entry(lambda: jopt.scale_by_hyperball_rate(RATE), elementwise=False, ulps=256),
    "scale_by_param_block_norm": Entry(jopt.scale_by_param_block_norm, **NATIVE),
    "scale_by_param_block_rms": Entry(jopt.scale_by_param_block_rms, **NATIVE),
    "scale_by_shrinking_rate": Entry(lambda: jopt.scale_by_shrinking_rate(RATE), zero_gradient=False),
    "scale_by_sm3": Entry(jopt.scale_by_sm3, **REAL),
}

WRAPPERS = {
    "hyperball": Entry(lambda: jopt.hyperball(jopt.scale_by_adam(), RATE), ulps=256, **NATIVE),
    "hyperball_everywhere": Entry(
        lambda: jopt.hyperball(jopt.scale_by_adam(), RATE, where=everything_else), elementwise=False, ulps=256
    ),
    "layerwise_adam": Entry(
        lambda: jopt.chain(jopt.adam(RATE), jopt.layerwise_decay(0.5, None, ("dense", "out"))), reads_paths=True
    ),
}

# A step along a sphere is a difference of two parameters of one size.
SPHERE = (1e-12, 1e-4)
SHAPED = [*LEAVES, "wide", "filters"]

ORACLES = [
    Replay("scale_by_factored_rms", slow=True),
    Replay("scale_by_factored_rms", only=SHAPED, min_dim_size_to_factor=2),
    Replay("scale_by_factored_rms", only=SHAPED, min_dim_size_to_factor=3, decay_rate=0.6, epsilon=1e-8, slow=True),
    Replay("scale_by_factored_rms", min_dim_size_to_factor=2, factored=False, slow=True),
    Replay("scale_by_param_block_norm"),
    Replay("scale_by_param_block_norm", min_scale=0.7, slow=True),
    Replay("scale_by_param_block_rms"),
    Replay("scale_by_param_block_rms", min_scale=0.7, slow=True),
    Replay("adafactor", learning_rate=0.05, slow=True),
    Replay("adafactor", only=SHAPED, learning_rate=0.05, min_dim_size_to_factor=2),
    Replay(
        "adafactor",
        only=SHAPED,
        learning_rate=FALL,
        min_dim_size_to_factor=3,
        multiply_by_parameter_scale=False,
        clipping_threshold=0.5,
        momentum=0.9,
        weight_decay_rate=0.01,
        static={"dtype_momentum": None},  # the default is float32, also under x64
        slow=True,
    ),
    Replay(
        "adafactor",
        learning_rate=0.05,
        weight_decay_rate=FADE,
        clipping_threshold=None,
        slow=True,
        **on(["kernel"], "weight_decay_rate", where="kernel"),
    ),
    Replay("scale_by_came", only=SHAPED),
    Replay("scale_by_came", only=SHAPED, b1=0.8, b2=0.95, b3=0.99, eps=1e-8, eps_doubt=1e-4, threshold=0.5, slow=True),
    Replay("came", learning_rate=0.001, slow=True),
    Replay("came", learning_rate=FADE, b3=0.99, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("scale_by_sm3", only=SHAPED),
    Replay("scale_by_sm3", only=SHAPED, b1=0.8, b2=0.95, eps=1e-4, slow=True),
    Replay("sm3", learning_rate=0.1),
    Replay("sm3", learning_rate=FALL, momentum=RISE, slow=True),
    Replay("scale_by_shrinking_rate", last=True, learning_rate=FADE),
    Replay("fromage", learning_rate=0.01),
    Replay("fromage", learning_rate=FADE, min_norm=0.5, slow=True),
    Replay("scale_by_hyperball_rate", last=True, only=MATRICES, learning_rate=0.02, tolerance=SPHERE),
    Replay("scale_by_hyperball_rate", last=True, learning_rate=FADE, tolerance=SPHERE, slow=True),
    Replay("hyperball", last=True, learning_rate=0.01, static={"tx": jopt.scale_by_adam()}, tolerance=SPHERE),
    Replay(
        "hyperball",
        last=True,
        learning_rate=FADE,
        rest_learning_rate=FALL,
        static={"tx": jopt.scale_by_adam()},
        tolerance=SPHERE,
        slow=True,
    ),
    Replay("scale_by_adam_mini", slow=True),
    Replay("scale_by_adam_mini", only=SHAPED, axis=-1),
    Replay("scale_by_adam_mini", only=SHAPED, axis=(0, -1), b1=0.8, b2=0.95, eps=1e-4, slow=True),
    Replay("scale_by_adam_mini", only=["wide", "filters"], axis=-1, parts=2),
    Replay("adam_mini", only=SHAPED, learning_rate=0.01),
    Replay("adam_mini", learning_rate=FALL, weight_decay=0.1, slow=True, **on(["kernel"], where="kernel")),
    Replay(
        "layerwise_decay", tree=True, decay=0.7, static={"depth": 4, "layers": ("bias", "block_{}", "kernel", "**")}
    ),
    Replay("apply_every", slow=True),
    Replay("apply_every", k=3),
    Replay("differentially_private_aggregate", tree=True, l2_norm_clip=1.0, noise_multiplier=0.0),
    Replay(
        "dpsgd", tree=True, learning_rate=0.1, l2_norm_clip=1.0, noise_multiplier=0.0, static={"seed": 3}, slow=True
    ),
    Replay(
        "dpsgd",
        tree=True,
        learning_rate=FALL,
        l2_norm_clip=0.5,
        noise_multiplier=0.0,
        momentum=0.9,
        nesterov=True,
        static={"seed": 3},
    ),
]

SYMBOLS = {
    "scale_by_factored_rms": {"v": ("V",), "v_row": ("R",), "v_col": ("C",)},
    "scale_by_came": {
        "mu": ("M",),
        "v": ("v",),
        "v_row": ("R",),
        "v_col": ("C",),
        "doubt_row": ("Ru",),
        "doubt_col": ("Cu",),
    },
    "scale_by_sm3": {"momentum": ("m",), **{f"mu_{k}": (f"mu{k}",) for k in range(4)}},
    "scale_by_hyperball_rate": {"radius": ("R",)},
    "scale_by_adam_mini": {"mu": ("m",), "nu": ("v",)},
    "apply_every": {"grad_acc": ("a",)},
}

# optax computes 1 − t⁻ᶜ in float32, also under x64, and takes it from 1 again.
POWER = {"f64": 1e-5, "f32": 2e-5}

# optax takes 1 from 1/√(1 + γ²), which differs from it by γ²/2.
CANCELS = {"f64": 1e-10, "f32": 1e-3}

OPTAX = [
    Against("adafactor", 0.05, slow=True, **POWER),
    Against("adafactor", 0.05, 2, **POWER),
    Against("adafactor", DECAYING, 3, 0.6, 0, False, 0.5, 0.9, jnp.float32, 0.01, 1e-8, True, MASK, slow=True, **POWER),
    Against("adafactor", None, 2, clipping_threshold=None, weight_decay_rate=DECAYING, slow=True, **POWER),
    Against("adafactor", 0.05, 2, factored=False, momentum=0.9, slow=True, **POWER),
    Against("scale_by_factored_rms", slow=True, bare=True, **POWER),
    Against("scale_by_factored_rms", True, 0.8, -3, 2, slow=True, bare=True, **POWER),
    Against("scale_by_factored_rms", True, 0.8, 0, 2, 1e-8, slow_memory, bare=True),
    Against("scale_by_param_block_norm", bare=True),
    Against("scale_by_param_block_norm", 0.7, slow=True, bare=True),
    Against("scale_by_param_block_rms", bare=True),
    Against("scale_by_param_block_rms", 0.7, slow=True, bare=True),
    Against("sm3", 0.1, only={"kernel": (5, 3), "bias": (5,), "filters": (2, 2, 3, 2)}),
    Against("sm3", 0.1, 0.8, only={"kernel": (5, 3), "bias": (5,)}, slow=True),
    Against("scale_by_sm3", 0.8, 0.95, 1e-4, only={"kernel": (5, 3), "bias": (5,)}, slow=True, bare=True),
    Against("fromage", 0.01, **CANCELS),
    Against("fromage", DECAYING, 0.5, slow=True, **CANCELS),
    Against("apply_every", slow=True, bare=True),
    Against("apply_every", 3, bare=True),
]

EXCEPTIONS = {
    "differentially_private_aggregate": "key has a default; seed is deprecated in optax",
    "scale_by_factored_rms": "decay_rate_fn is None for the formula that is optax's default",
}

UNCOMPARED = {
    "differentially_private_aggregate": "its gradients have an axis of examples; in test_privacy.py",
    "dpsgd": "its gradients have an axis of examples; in test_privacy.py",
    "per_example_global_norm_clip": "a plain function; in test_privacy.py",
    "per_example_layer_norm_clip": "a plain function; in test_privacy.py",
}

RANDOM = {
    "per_example_global_norm_clip": "a plain function; in test_privacy.py",
    "per_example_layer_norm_clip": "a plain function; in test_privacy.py",
    "unitwise_clip": "a plain function; in test_privacy.py",
    "unitwise_norm": "a plain function; in test_privacy.py",
}
