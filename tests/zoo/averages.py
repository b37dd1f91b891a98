"""Averages of the parameters, look-ahead, sharpness, and wrappers."""

import jopt
from jopt.wrap.averages import average_latest, average_uniformly
from zoo.cases import B2, FALL, RISE, ROUNDED, Against, Replay, on
from zoo.entry import RATE, Entry, rated

# Their updates are differences of parameters, and rounded as these are; the law compares with the updates' size.
LANDS = {"ulps": 1024}

OPTIMIZERS = {
    "gpa_adamw": rated(jopt.gpa_adamw, zero_gradient=False, **LANDS),
    "schedule_free_adamw": rated(jopt.schedule_free_adamw, **LANDS),
    "schedule_free_sgd": rated(jopt.schedule_free_sgd, **LANDS),
    "schedule_free_warm": Entry(lambda: jopt.schedule_free_adamw(RATE, 5, 0.0), **LANDS),
}

RULES = {}

PARTS = (("average_uniformly", average_uniformly), ("average_latest", average_latest))

WRAPPERS = {
    "gpa": Entry(lambda: jopt.gpa(jopt.adam(RATE), 0.9), **LANDS),
    "lawa": Entry(lambda: jopt.lawa(jopt.adam(RATE), 2, 2), namespace=PARTS),
    "lookahead": Entry(lambda: jopt.lookahead(jopt.adam(RATE), 2, 0.5), **LANDS),
    "schedule_free": Entry(lambda: jopt.schedule_free(jopt.sgd(RATE), RATE, 0.5), **LANDS),
    "swa": Entry(lambda: jopt.swa(jopt.adam(RATE), 1, 2), namespace=PARTS),
}


# Against their transcriptions ---------------------------------------------------------------------

INNER = {"static": {"fast_optimizer": jopt.sgd(0.25)}, "last": True}
AVERAGED = {"static": {"tx": jopt.sgd(0.25)}, "last": True}

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
    Replay("swa", start=100, every=7, **AVERAGED),
]

SYMBOLS = {
    "schedule_free": {"z": ("z",), "averaged": ("x",)},
    "gpa": {"z": ("z",), "averaged": ("x",)},
    "lookahead": {"averaged": ("slow",)},
    "average_uniformly": {"averaged": ("mean",)},
}


# Against optax ------------------------------------------------------------------------------------

# optax computes a warm-up in float32 also where everything else is float64.
WARMED_UP = {"f64": 1e-6}

OPTAX = [
    Against("schedule_free_sgd", 0.05, last=True),
    Against("schedule_free_sgd", 0.05, 20, 0.95, 0.1, 1.0, last=True, **WARMED_UP),
    Against("schedule_free_adamw", 0.01, last=True, **B2),
    Against("schedule_free_adamw", 0.01, 20, 0.95, 0.98, 1e-4, 0.1, 1.0, slow=True, last=True, **WARMED_UP),
]

EXCEPTIONS = {}
