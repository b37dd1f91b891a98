"""Averages of the parameters, look-ahead, sharpness, and wrappers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import jopt
from jopt.dtypes import is_trained
from jopt.wrap.averages import average_latest, average_uniformly
from jopt.wrap.measures import AveragedMeasure, monitor_measures
from zoo.cases import B2, FALL, MASK, RISE, ROUNDED, Against, Replay, on
from zoo.entry import RATE, Entry, rated

# Their updates are differences of parameters, and rounded as these are; the law compares with the updates' size.
LANDS = {"ulps": 1024}

OPTIMIZERS = {
    "gpa_adamw": rated(jopt.gpa_adamw, zero_gradient=False, **LANDS),
    "schedule_free_adamw": rated(jopt.schedule_free_adamw, **LANDS),
    "schedule_free_sgd": rated(jopt.schedule_free_sgd, **LANDS),
    "schedule_free_warm": Entry(lambda: jopt.schedule_free_adamw(RATE, 5, 0.0), **LANDS),
}

RULES = {"normalize": Entry(jopt.normalize)}


def pull(params, i):
    """The signs of the parameters, which rounding to 16 bits leaves alone; other leaves get None."""

    def signs(p):
        return jax.lax.complex(jnp.sign(p.real), jnp.sign(p.imag)) if jnp.iscomplexobj(p) else jnp.sign(p)

    return jax.tree.map(lambda p: signs(p) if is_trained(p) else None, params)


def ascent(rho=0.05):
    """The adversary of the SAM paper."""
    return jopt.chain(jopt.normalize(), jopt.sgd(rho))


PARTS = (("average_uniformly", average_uniformly), ("average_latest", average_latest))


@dataclasses.dataclass(frozen=True)
class NotFinite:
    """A reason to skip."""

    def __call__(self, updates, gradient_step, params):
        return jopt.skip_not_finite(updates, gradient_step, params)


@dataclasses.dataclass(frozen=True)
class EveryOther:
    """A condition."""

    def __call__(self, step, **extra):
        return step % 2 == 0


@dataclasses.dataclass(frozen=True)
class Total:
    """A measure."""

    def __call__(self, updates):
        sizes = (jnp.sum(jnp.abs(u)).astype(jnp.result_type(float)) for u in jax.tree.leaves(updates))
        return sum(sizes, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Labels:
    """One label for all."""

    def __call__(self, params):
        return jax.tree.map(lambda p: "a", params)


NAMES = tuple((value.__name__, value) for value in (EveryOther, NotFinite, Labels, Total, AveragedMeasure))
NAMES += (("monitor_measures", monitor_measures),)

WRAPPERS = {
    "MultiSteps": Entry(lambda: jopt.MultiSteps(jopt.adam(RATE), 2, accumulator_dtype=jnp.result_type(float))),
    "MultiSteps_skipping": Entry(
        lambda: jopt.MultiSteps(jopt.adam(RATE), 2, False, NotFinite(), jnp.result_type(float)),
        namespace=NAMES,
    ),
    "apply_if_finite": Entry(lambda: jopt.apply_if_finite(jopt.adam(RATE), 2)),
    "conditionally_mask": Entry(lambda: jopt.conditionally_mask(jopt.adam(RATE), EveryOther()), namespace=NAMES),
    "conditionally_transform": Entry(
        lambda: jopt.conditionally_transform(jopt.trace(0.9), EveryOther(), True), namespace=NAMES
    ),
    "monitor_measures": Entry(
        lambda: jopt.monitor({"total": Total(), "mean": jopt.measure_with_ema(Total(), 0.9)}), namespace=NAMES
    ),
    "multi_transform": Entry(
        lambda: jopt.multi_transform({"a": jopt.adam(RATE), "b": jopt.sgd(RATE)}, Labels()),
        reads_paths=True,
        namespace=NAMES,
    ),
    "named_chain": Entry(lambda: jopt.named_chain(("adam", jopt.scale_by_adam()), ("rate", jopt.scale(-RATE)))),
    "partition_labels": Entry(
        lambda: jopt.partition({"a": jopt.adam(RATE), "b": jopt.sgd(RATE)}, "a"), reads_paths=True
    ),
    "selective_transform": Entry(
        lambda: jopt.selective_transform(jopt.adam(RATE), freeze_mask=False), reads_paths=True
    ),
    "snapshot": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.snapshot("total", Total())), namespace=NAMES),
    "asam": Entry(lambda: jopt.asam(jopt.sgd(RATE), reset_state=False), complex="native", **LANDS),
    "gpa": Entry(lambda: jopt.gpa(jopt.adam(RATE), 0.9), **LANDS),
    "lawa": Entry(lambda: jopt.lawa(jopt.adam(RATE), 2, 2), namespace=PARTS),
    "lookahead": Entry(lambda: jopt.lookahead(jopt.adam(RATE), 2, 0.5), **LANDS),
    "sam": Entry(lambda: jopt.sam(jopt.adam(RATE), ascent(), reset_state=False), **LANDS),
    "sam_opaque": Entry(
        lambda: jopt.sam(jopt.adam(RATE), ascent(), 3, False, opaque_mode=True),
        grad_fn=pull,
        zero_gradient=False,
        **LANDS,
    ),
    "scale_by_adaptive_sharpness": Entry(jopt.scale_by_adaptive_sharpness, complex="native"),
    "schedule_free": Entry(lambda: jopt.schedule_free(jopt.sgd(RATE), RATE, 0.5), **LANDS),
    "swa": Entry(lambda: jopt.swa(jopt.adam(RATE), 1, 2), namespace=PARTS),
}


# Against their transcriptions ---------------------------------------------------------------------

INNER = {"static": {"fast_optimizer": jopt.sgd(0.25)}, "last": True}
AVERAGED = {"static": {"tx": jopt.sgd(0.25)}, "last": True}

SHARP = {"static": {"optimizer": jopt.sgd(0.25, 0.5), "adv_optimizer": ascent(0.125)}, "last": True}
SHARP_ALONE = {"static": {"optimizer": jopt.sgd(0.25, 0.5)}, "last": True}

# z is a sum of a thousand steps, each rounded in float32.
SUMS = {"last": True, "tolerance": ROUNDED}

ORACLES = [
    Replay("schedule_free_sgd", **SUMS, learning_rate=0.05),
    Replay("schedule_free_sgd", **SUMS, learning_rate=0.05, b1=0.0, weight_decay=0.1, weight_lr_power=0.0, slow=True),
    Replay("schedule_free_sgd", **SUMS, learning_rate=0.05, b1=RISE, weight_decay=0.1, warmup_steps=20, slow=True),
    Replay("schedule_free_adamw", **SUMS, learning_rate=0.01),
    Replay(
        "schedule_free_adamw",
        last=True,
        learning_rate=0.01,
        b1=0.95,
        b2=0.98,
        weight_decay=0.1,
        warmup_steps=50,
        slow=True,
    ),
    Replay("gpa_adamw", **SUMS, learning_rate=0.01),
    Replay(
        "gpa_adamw",
        **SUMS,
        learning_rate=FALL,
        weight_decay=0.1,
        mu_x=0.99,
        mu_y=0.9,
        **on(["kernel"], where="kernel"),
        slow=True,
    ),
    Replay("lookahead", sync_period=5, slow_step_size=0.5, **INNER),
    Replay("normalize", tree=True),
    Replay("sam", tree=True, sync_period=3, **SHARP),
    Replay("asam", tree=True, rho=0.5, eta=0.02, **SHARP_ALONE),
    Replay("swa", start=100, every=7, **AVERAGED),
]

SYMBOLS = {
    "schedule_free": {"z": ("z",), "averaged": ("x",)},
    "gpa": {"z": ("z",), "averaged": ("x",)},
    "sam": {"averaged": ("home",)},
    "lookahead": {"averaged": ("slow",)},
    "average_uniformly": {"averaged": ("mean",)},
}


# Against optax ------------------------------------------------------------------------------------

# optax computes a warm-up in float32 also where everything else is float64.
WARMED_UP = {"f64": 1e-6}

LABELS = {"kernel": "a", "bias": "b", "gain": "a"}


def growing(step):
    """Longer and longer windows."""
    return 1 + step // 4


OPTAX = [
    Against("normalize", bare=True),
    Against("multi_transform", {"a": jopt.adam(0.05), "b": jopt.sgd(0.1)}, LABELS, **B2),
    Against("named_chain", ("adam", jopt.scale_by_adam()), ("rate", jopt.scale(-0.05)), slow=True, **B2),
    Against("selective_transform", jopt.sgd(0.1, 0.9), freeze_mask=MASK),
    Against("apply_if_finite", jopt.sgd(0.1, 0.9), 2, slow=True),
    Against("conditionally_mask", jopt.sgd(0.1, 0.9), EveryOther()),
    Against("conditionally_transform", jopt.sgd(0.1, 0.9), EveryOther()),
    Against("MultiSteps", jopt.sgd(0.1, 0.9), 3, f64=1e-6),  # optax gathers in float32
    Against(
        "MultiSteps",
        jopt.sgd(0.1, 0.9),
        growing,
        False,
        functools.partial(jopt.skip_large_updates, max_squared_norm=300.0),
        jnp.float32,
        slow=True,
    ),
    Against("snapshot", "total", Total(), bare=True, slow=True),
    Against("sam", jopt.sgd(0.05, 0.9), ascent(), last=True),
    Against("sam", jopt.adam(0.05), jopt.adam(0.05), 3, False, last=True, slow=True, **B2),
    Against("schedule_free", jopt.adam(0.05, 0.0), 0.05, 0.8, 1.0, last=True, slow=True, **B2),
    Against("schedule_free_sgd", 0.05, last=True),
    Against("schedule_free_sgd", 0.05, 20, 0.95, 0.1, 1.0, last=True, **WARMED_UP),
    Against("schedule_free_adamw", 0.01, last=True, **B2),
    Against("schedule_free_adamw", 0.01, 20, 0.95, 0.98, 1e-4, 0.1, 1.0, slow=True, last=True, **WARMED_UP),
]

EXCEPTIONS = {"multi_transform": "no mask_compatible_extra_args"}
