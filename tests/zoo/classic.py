"""The classic optimizers, their rules, clipping, regularization and wrappers."""

from typing import Any

import jax.numpy as jnp

import jopt
from jopt.paths import everything_else
from jopt.wrap.monitor import monitor_gradients, monitor_updates
from zoo.cases import (
    B2,
    DECAYING,
    FADE,
    FALL,
    LEAVES,
    MASK,
    OTHER,
    PARITY_MATRICES,
    RISE,
    ROUNDED,
    UNITS,
    Against,
    Replay,
    no_bias,
    on,
)
from zoo.entry import RATE, Entry, rated

FADING = jopt.schedules.inverse_time_decay_schedule(0.9, 1.0, 1)


def scheduled(decay: Any) -> jopt.Transform:
    """An optimizer whose numbers follow schedules, but for the decay."""
    return jopt.adamw(jopt.schedules.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8), b1=FADING, weight_decay=decay)


def halve_step(g, s, p):
    return g / 2, s


def halve() -> jopt.Transform:
    """A rule as a user writes one."""
    return jopt.rule("halve", halve_step)


def halve_all_update(grads, own, params):
    return {path: g / 2 for path, g in grads.items()}, own


def halve_all() -> jopt.Transform:
    """A part over the whole tree as a user writes one."""
    return jopt.whole(jopt.Whole("halve_all", halve_all_update))


OPTIMIZERS = {
    "adadelta": rated(jopt.adadelta),
    "adagrad": rated(jopt.adagrad),
    "adam": rated(jopt.adam),
    "adam_nesterov": rated(lambda rate: jopt.adam(rate, nesterov=True)),
    "adam_uncorrected": rated(lambda rate: jopt.adam(rate, bias_correction=False)),
    "adamax": rated(jopt.adamax),
    "adamaxw": rated(jopt.adamaxw, zero_gradient=False),
    "adamw": rated(jopt.adamw, zero_gradient=False),
    "adamw_bfloat16": rated(lambda rate: jopt.adamw(rate, mu_dtype=jnp.bfloat16), zero_gradient=False),
    "adamw_scheduled": rated(scheduled, zero_gradient=False),
    "adamw_where": rated(lambda rate: jopt.adamw(rate, where="**/kernel"), zero_gradient=False, reads_paths=True),
    "amsgrad": rated(jopt.amsgrad),
    "lamb": rated(lambda rate: jopt.lamb(rate, weight_decay=0.01), zero_gradient=False, elementwise=False),
    "lars": rated(jopt.lars, elementwise=False),
    "lion": rated(jopt.lion, zero_gradient=False),
    "momentum": rated(jopt.momentum),
    "nadam": rated(jopt.nadam),
    "nadamw": rated(jopt.nadamw, zero_gradient=False),
    "nesterov": rated(jopt.nesterov),
    "rmsprop": rated(jopt.rmsprop),
    "rmsprop_centered": rated(lambda rate: jopt.rmsprop(rate, centered=True, momentum=0.9)),
    "sgd": rated(jopt.sgd),
    "sign_sgd": rated(jopt.sign_sgd),
    "signum": rated(jopt.signum),
}

ARRAY = {"elementwise": False, "complex": "native"}

RULES = {
    "identity": Entry(jopt.identity),
    "nesterov_trace": Entry(lambda: jopt.nesterov_trace(0.9)),
    "normalize_by_update_norm": Entry(jopt.normalize_by_update_norm),
    "scale": Entry(lambda: jopt.scale(-0.5)),
    "scale_by_adadelta": Entry(jopt.scale_by_adadelta),
    "scale_by_adam": Entry(jopt.scale_by_adam),
    "scale_by_adamax": Entry(jopt.scale_by_adamax),
    "scale_by_amsgrad": Entry(jopt.scale_by_amsgrad),
    "scale_by_ema": Entry(lambda: jopt.scale_by_ema(0.9)),
    "scale_by_learning_rate": Entry(lambda: jopt.scale_by_learning_rate(RATE)),
    "scale_by_lion": Entry(jopt.scale_by_lion),
    "scale_by_nadam": Entry(jopt.scale_by_nadam),
    "scale_by_rms": Entry(jopt.scale_by_rms),
    "scale_by_rms_corrected": Entry(lambda: jopt.scale_by_rms(eps_in_sqrt=False, bias_correction=True)),
    "scale_by_root_sum": Entry(jopt.scale_by_root_sum),
    "scale_by_rss": Entry(jopt.scale_by_rss),
    "scale_by_schedule": Entry(lambda: jopt.scale_by_schedule(FADING)),
    "scale_by_sign": Entry(jopt.scale_by_sign),
    "scale_by_stddev": Entry(jopt.scale_by_stddev),
    "scale_by_trust_ratio": Entry(jopt.scale_by_trust_ratio, elementwise=False),
    "scale_by_uncorrected_adam": Entry(jopt.scale_by_uncorrected_adam),
    "set_to_zero": Entry(jopt.set_to_zero),
    "trace": Entry(lambda: jopt.trace(0.9)),
    # Clipping and cleaning.
    "adaptive_grad_clip": Entry(lambda: jopt.adaptive_grad_clip(0.1), **ARRAY),
    "centralize": Entry(jopt.centralize, **ARRAY),
    "clip": Entry(lambda: jopt.clip(0.5)),
    "clip_by_block_rms": Entry(lambda: jopt.clip_by_block_rms(0.5), **ARRAY),
    "clip_by_global_norm": Entry(lambda: jopt.clip_by_global_norm(0.5)),
    "zero_nans": Entry(jopt.zero_nans),
    # Regularization.
    "add_decayed_weights": Entry(lambda: jopt.add_decayed_weights(0.01), zero_gradient=False),
    "add_l1_subgradient": Entry(lambda: jopt.add_l1_subgradient(0.01), zero_gradient=False),
    "add_noise": Entry(lambda: jopt.add_noise(0.1, 0.55), zero_gradient=False, random=True),
    "clip_params": Entry(lambda: jopt.clip_params(-0.5, 0.5), zero_gradient=False),
    "keep_params_nonnegative": Entry(jopt.keep_params_nonnegative, zero_gradient=False),
    "max_norm_constraint": Entry(lambda: jopt.max_norm_constraint(0.5), zero_gradient=False, **ARRAY),
    "soft_threshold": Entry(lambda: jopt.soft_threshold(0.5, RATE), zero_gradient=False),
    # With the loss.
    "reduce_on_plateau": Entry(lambda: jopt.reduce_on_plateau(patience=1), value=True),
}

WRAPPERS = {
    "accumulate": Entry(lambda: jopt.accumulate(jopt.adam(RATE), every=2)),
    "accumulate_apply": Entry(lambda: jopt.accumulate(jopt.skip_nonfinite(jopt.momentum(RATE)), every=2)),
    "average_params": Entry(lambda: jopt.average_params(0.9)),
    "chain": Entry(lambda: jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(RATE)), zero_gradient=False),
    "ema": Entry(lambda: jopt.ema(jopt.adam(RATE), 0.9)),
    "freeze": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.freeze(where="out/*")), reads_paths=True),
    "masked": Entry(
        lambda: jopt.chain(jopt.masked(jopt.scale_by_adam(), where="**/kernel"), jopt.scale_by_learning_rate(RATE)),
        reads_paths=True,
    ),
    "monitor": Entry(
        lambda: jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adam(RATE))),
        namespace=(("monitor_gradients", monitor_gradients), ("monitor_updates", monitor_updates)),
    ),
    "partition": Entry(
        lambda: jopt.partition(
            [("**/kernel", jopt.adam(RATE)), ("rest", everything_else, jopt.sgd(RATE))], idle="allow"
        ),
        reads_paths=True,
    ),
    "plateau_adam": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.reduce_on_plateau(patience=1)), value=True),
    "rule": Entry(halve, namespace=(("halve", halve),)),
    "skip_nonfinite": Entry(lambda: jopt.skip_nonfinite(jopt.adam(RATE))),
    "whole": Entry(halve_all, namespace=(("halve_all", halve_all),)),
}


# Against their transcriptions ---------------------------------------------------------------------

ORACLES = [
    Replay("identity"),
    Replay("set_to_zero"),
    Replay("scale", step_size=-0.3),
    Replay("scale", step_size=FALL, slow=True),
    Replay("scale_by_schedule", step_size_fn=FALL),
    Replay("scale_by_learning_rate", learning_rate=0.3),
    Replay("scale_by_learning_rate", learning_rate=FADE, flip_sign=False),
    Replay("trace", decay=0.9),
    Replay("trace", decay=0.9, nesterov=True, slow=True),
    Replay("trace", decay=RISE),
    Replay("nesterov_trace", decay=0.95),
    Replay("scale_by_ema", decay=0.9),
    Replay("scale_by_ema", decay=0.95, debias=False),
    Replay("average_params", last=True, decay=0.99),
    Replay("sgd", learning_rate=0.05),
    Replay("sgd", learning_rate=FALL, momentum=0.9),
    Replay("sgd", learning_rate=0.05, momentum=0.9, nesterov=True, slow=True),
    Replay("momentum", learning_rate=0.02, slow=True),
    Replay("momentum", learning_rate=FADE, momentum=RISE),
    Replay("nesterov", learning_rate=0.02),
    Replay("scale_by_root_sum"),
    Replay("scale_by_root_sum", initial_accumulator_value=0.2, eps=1e-3, slow=True),
    Replay("scale_by_rss"),
    Replay("scale_by_rss", initial_accumulator_value=0.0, eps=1e-3, slow=True),
    Replay("adagrad", learning_rate=0.1),
    Replay("adagrad", learning_rate=FALL, initial_accumulator_value=0.0, eps=1e-6, slow=True),
    Replay("scale_by_rms", slow=True),
    Replay("scale_by_rms", decay=0.99, eps=1e-4, initial_scale=0.5, eps_in_sqrt=False, bias_correction=True),
    Replay("scale_by_stddev", eps=1e-4, slow=True),
    Replay("scale_by_stddev", decay=0.95, eps=1e-4, initial_scale=0.5, eps_in_sqrt=False, bias_correction=True),
    Replay("rmsprop", learning_rate=0.01),
    Replay("rmsprop", learning_rate=FALL, decay=RISE, eps_in_sqrt=False, slow=True),
    Replay("rmsprop", learning_rate=0.01, eps=1e-4, centered=True, momentum=0.9),
    Replay("rmsprop", learning_rate=FALL, momentum=0.9, nesterov=True, bias_correction=True, slow=True),
    Replay("scale_by_adadelta"),
    Replay("scale_by_adadelta", rho=0.95, eps=1e-4, slow=True),
    Replay("adadelta", slow=True),
    Replay("adadelta", learning_rate=0.5, weight_decay=0.01, **on(["kernel"], where="kernel")),
    Replay("scale_by_adam"),
    Replay("scale_by_adam", b1=0.8, b2=0.95, eps=1e-4, eps_root=1e-5),
    Replay("scale_by_adam", nesterov=True, slow=True),
    Replay("scale_by_uncorrected_adam", slow=True),
    Replay("scale_by_nadam", b1=0.95, b2=0.98, slow=True),
    Replay("scale_by_amsgrad", slow=True),
    Replay("scale_by_amsgrad", eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False),
    Replay("scale_by_adamax", b2=0.99, slow=True),
    Replay("adam", learning_rate=0.01),
    Replay("adam", learning_rate=0.01, bias_correction=False),
    Replay("adam", learning_rate=FALL, b1=RISE, slow=True),
    Replay("adamw", learning_rate=0.01, tolerance=ROUNDED, slow=True),
    Replay("adamw", learning_rate=0.01, b2=0.95, weight_decay=0.1, nesterov=True, slow=True),
    Replay("adamw", learning_rate=FALL, b1=RISE, weight_decay=FADE),
    Replay("adamw", learning_rate=0.01, weight_decay=0.1, **on(["kernel"], where=jopt.ndim(2))),
    Replay("adamw", learning_rate=FALL, weight_decay=FADE, **on(["bias"], mask={n: n == "bias" for n in LEAVES})),
    Replay("nadam", learning_rate=0.01, slow=True),
    Replay("nadamw", learning_rate=FALL, weight_decay=0.1),
    Replay("amsgrad", learning_rate=0.01, slow=True),
    Replay("adamax", learning_rate=0.01, slow=True),
    Replay("adamaxw", learning_rate=0.01, weight_decay=FADE),
    Replay("scale_by_sign", slow=True),
    Replay("scale_by_lion", tolerance=ROUNDED, slow=True),
    Replay("lion", learning_rate=0.01, slow=True),
    Replay("lion", learning_rate=FALL, b1=RISE, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("sign_sgd", learning_rate=FALL),
    Replay("signum", learning_rate=0.01),
    Replay("scale_by_trust_ratio", slow=True),
    Replay("scale_by_trust_ratio", min_norm=0.5, trust_coefficient=0.1, eps=1e-3),
    Replay("lars", learning_rate=0.5, slow=True),
    Replay("lars", learning_rate=FALL, weight_decay=0.1, trust_coefficient=0.02, eps=1e-3, nesterov=True),
    Replay("lamb", learning_rate=0.01, slow=True),
    Replay("lamb", learning_rate=FALL, weight_decay=0.1, **on(["kernel"], where=jopt.ndim(2))),
    Replay("normalize_by_update_norm", tree=True, slow=True),
    Replay("normalize_by_update_norm", tree=True, scale_factor=0.5, eps=1e-2),
    Replay("clip", max_delta=0.5),
    Replay("clip_by_global_norm", tree=True, max_norm=1.0),
    Replay("clip_by_global_norm", tree=True, max_norm=FALL, slow=True),
    Replay("clip_by_block_rms", threshold=0.3),
    Replay("adaptive_grad_clip", only=UNITS, clipping=0.1),
    Replay("adaptive_grad_clip", only=UNITS, clipping=FADE, eps=0.5, slow=True),
    Replay("zero_nans"),
    Replay("centralize", only=UNITS),
    Replay("add_decayed_weights", weight_decay=0.1, slow=True),
    Replay("add_decayed_weights", weight_decay=FADE, **on(["bias", "gain"], where="bias|gain")),
    Replay("add_l1_subgradient", l1=0.1),
    Replay("soft_threshold", last=True, l1=0.5, step_size=0.1, tolerance=ROUNDED, slow=True),
    Replay("soft_threshold", last=True, l1=0.5, step_size=FALL, **on(["kernel"], "l1", where="kernel")),
    Replay("keep_params_nonnegative", last=True),
    Replay("clip_params", last=True, low=-0.3, high=0.2),
    Replay("max_norm_constraint", last=True, only=UNITS, max_norm=0.7),
    Replay("reduce_on_plateau", tree=True, value=True, patience=3, slow=True),
    Replay(
        "reduce_on_plateau",
        tree=True,
        value=True,
        factor=0.5,
        patience=5,
        rtol=0.0,
        atol=1e-3,
        cooldown=4,
        accumulation_size=3,
        min_scale=0.01,
    ),
]

# Which symbol of the oracle a slot is; every slot of the state is compared.
SYMBOLS = {
    "trace": {"trace": ("b", "d")},
    "nesterov_trace": {"trace": ("b", "d")},
    "scale_by_ema": {"ema": ("m",)},
    "average_params": {"averaged": ("average",)},
    "scale_by_root_sum": {"sum_of_squares": ("G",)},
    "scale_by_rss": {"sum_of_squares": ("G",)},
    "scale_by_rms": {"nu": ("r",)},
    "scale_by_stddev": {"mu": ("m",), "nu": ("n",)},
    "scale_by_adadelta": {"e_g": ("Eg2",), "e_x": ("Edx2",)},
    "scale_by_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_uncorrected_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_nadam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_amsgrad": {"mu": ("m",), "nu": ("v",), "nu_max": ("v_hat",)},
    "scale_by_adamax": {"mu": ("m",), "nu": ("u",)},
    "scale_by_lion": {"mu": ("m",)},
}


# Against optax ------------------------------------------------------------------------------------

OPTAX = [
    Against("sgd", 0.1, slow=True),
    Against("sgd", 0.1, 0.9),
    Against("sgd", DECAYING, 0.9, True),
    Against("adagrad", 0.1),
    Against("adagrad", 0.1, 0.0, 1e-4, slow=True),
    Against("rmsprop", 0.01, slow=True),
    Against("rmsprop", 0.01, 0.95, 1e-4, 0.5, False, slow=True),
    Against("rmsprop", 0.01, 0.95, 1e-4, 0.5, True, True, 0.9, True, True),
    Against("rmsprop", DECAYING, centered=True, eps_in_sqrt=False, eps=1e-3, slow=True),
    Against("rmsprop", 0.01, momentum=0.9, bias_correction=True, slow=True),
    Against("adadelta", slow=True),
    Against("adadelta", 0.5, 0.95, 1e-4, 0.03, MASK),
    Against("adadelta", 0.5, weight_decay=0.03, slow=True),
    Against("adam", 0.01, slow=True, **B2),
    Against("adam", DECAYING, 0.8, 0.95, 1e-5, 1e-6, nesterov=True),
    Against("adam", 0.01, 0.8, 0.95, 1e-5, 1e-6, slow=True),
    Against("adamw", 0.01, **B2),
    Against("adamw", DECAYING, 0.8, 0.95, 1e-5, 1e-6, None, 0.03, MASK),
    Against("adamw", 0.01, weight_decay=DECAYING, mask=no_bias, **B2),
    Against("adamw", 0.01, nesterov=True, slow=True, **B2),
    Against("nadam", 0.01, slow=True, **B2),
    Against("nadam", 0.01, 0.8, 0.95, 1e-5, 1e-6),
    Against("nadamw", 0.01, 0.8, 0.95, 1e-5, 1e-6, None, 0.03, MASK),
    Against("amsgrad", 0.01, slow=True, **B2),
    Against("amsgrad", 0.01, 0.8, 0.95, 1e-5, 1e-6, None, False, False),
    Against("adamax", 0.01, slow=True),
    Against("adamax", 0.01, 0.8, 0.95, 1e-3, slow=True),
    Against("adamaxw", 0.01, 0.8, 0.95, 1e-3, 0.03, no_bias),
    Against("lion", 0.01, slow=True),
    Against("lion", DECAYING, 0.8, 0.95, None, 0.03, MASK),
    Against("sign_sgd", 0.01),
    Against("signum", 0.01, slow=True),
    Against("signum", 0.01, 0.8),
    Against("lars", 0.5, slow=True),
    Against("lars", 0.5, 0.03, MASK, 0.01, 1e-3, OTHER, 0.8, True),
    Against("lamb", 0.01, slow=True, **B2),
    Against("lamb", DECAYING, 0.8, 0.95, 1e-5, 1e-6, 0.03, MASK),
    Against("scale_by_adam", slow=True, bare=True, **B2),
    Against("scale_by_adam", 0.8, 0.95, 1e-5, 1e-6, nesterov=True, slow=True, bare=True),
    Against("scale_by_nadam", 0.8, 0.95, 1e-5, 1e-6, slow=True, bare=True),
    Against("scale_by_amsgrad", 0.8, 0.95, 1e-5, 1e-6, None, True, False, slow=True, bare=True),
    Against("scale_by_adamax", 0.8, 0.95, 1e-3, slow=True, bare=True),
    Against("scale_by_adadelta", 0.95, 1e-4, slow=True, bare=True),
    Against("scale_by_rms", 0.95, 1e-4, 0.5, False, True, slow=True, bare=True),
    Against("scale_by_stddev", 0.95, 1e-4, 0.5, False, True, slow=True, bare=True),
    Against("scale_by_rss", 0.2, 1e-4, slow=True, bare=True),
    Against("scale_by_lion", 0.8, 0.95, slow=True, bare=True),
    Against("scale_by_sign", slow=True, bare=True),
    Against("scale_by_trust_ratio", slow=True, bare=True),
    Against("scale_by_trust_ratio", 0.5, 0.1, 1e-3, bare=True),
    Against("scale_by_ema", 0.9, theirs="ema", slow=True, bare=True),
    Against("scale_by_ema", 0.9, False, theirs="ema", bare=True),
    Against("trace", 0.9, slow=True, bare=True),
    Against("trace", 0.9, True, slow=True, bare=True),
    Against("scale", -0.3, slow=True, bare=True),
    Against("scale_by_schedule", DECAYING, slow=True, bare=True),
    Against("scale_by_learning_rate", 0.1, slow=True, bare=True),
    Against("scale_by_learning_rate", DECAYING, flip_sign=False, bare=True),
    Against("normalize_by_update_norm", slow=True, bare=True),
    Against("normalize_by_update_norm", 0.5, 1e-2, bare=True),
    Against("identity", slow=True, bare=True),
    Against("set_to_zero", slow=True, bare=True),
    Against("clip", 0.5, bare=True),
    Against("clip_by_global_norm", 1.0, bare=True),
    Against("clip_by_block_rms", 0.3, bare=True),
    Against("adaptive_grad_clip", 0.1, 0.5, bare=True),
    Against("adaptive_grad_clip", 0.1, 1e-3, 0, only=PARITY_MATRICES, slow=True, bare=True),
    Against("centralize", bare=True),
    Against("zero_nans", bare=True),
    Against("add_decayed_weights", slow=True, bare=True),
    Against("add_decayed_weights", 0.1, no_bias, bare=True),
    Against("keep_params_nonnegative"),
    Against("freeze", MASK, bare=True),
    Against("reduce_on_plateau", slow=True, bare=True, value=True),
    Against("reduce_on_plateau", 0.5, 3, 1e-3, 1e-3, 2, 2, 0.01, bare=True, value=True),
]

EXCEPTIONS = {
    "add_noise": "key has a default; seed is deprecated in optax",
    "ema": "averages the parameters; optax's is scale_by_ema",
    "freeze": "without a mask it freezes all it is given",
    "masked": "where= may stand for mask; no mask_compatible_extra_args",
    "monitor": "records norms; optax's takes measures",
    "nadam": "no nesterov, which would turn it into adam",
    "nadamw": "no nesterov, which would turn it into adamw",
    "partition": "an ordered list of cases",
    "scale_by_learning_rate": "the rate has no default",
}

RANDOM = {"add_noise": "by its statistics, in test_oracles.py"}
