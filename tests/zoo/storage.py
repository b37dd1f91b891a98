"""State in fewer bits: stored slots, rounded and compensated parameters."""

import jax.numpy as jnp

import jopt
from zoo.entry import RATE, Entry, rated

# What is decoded is float32 beside float64 parameters as well.
FLOAT32 = {"ulps": 64 * float(jnp.finfo(jnp.float32).eps / jnp.finfo(jnp.result_type(float)).eps)}
# Blocks span the elements of an array, and their scale is that of the largest.
BLOCKS = {"elementwise": False, **FLOAT32}


def stored(tx, *formats, **options):
    """A transform whose first and second moments are stored."""
    return jopt.store(tx, dict(zip(("mu", "nu"), formats, strict=False)), **options)


OPTIMIZERS = {
    "adamw_8bit": rated(jopt.adamw_8bit, zero_gradient=False, **BLOCKS),
    "adamw_bf16": rated(jopt.adamw_bf16, zero_gradient=False, lands=True, **BLOCKS),
    "lion_8bit": rated(jopt.lion_8bit, zero_gradient=False, **FLOAT32),  # its sign hides which elements share a scale
}

WRAPPERS = {
    "compensate": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.compensate()), lands=True),
    "compensate_bfloat16": Entry(lambda: jopt.chain(jopt.sgd(RATE), jopt.compensate("bfloat16")), lands=True),
    "round_stochastically": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.round_stochastically()), lands=True),
    "store": Entry(lambda: stored(jopt.adam(RATE), "int8", "int8", where="**/kernel"), reads_paths=True, **BLOCKS),
    "store_bfloat16": Entry(lambda: stored(jopt.adam(RATE), "bfloat16", "bfloat16"), **FLOAT32),
    "store_float8": Entry(lambda: stored(jopt.adam(RATE), "float8_e4m3", "float8_e5m2"), **BLOCKS),
    "store_inside": Entry(lambda: stored(jopt.accumulate(jopt.adam(RATE), every=2), "int8", "uint8"), **FLOAT32),
    "store_matrices": Entry(lambda: stored(jopt.scale_by_muon(), "int8"), matrices_only=True, complex=None, **BLOCKS),
}

# A code is a rounded number: arithmetic that is rounded in another way takes another code, and no transcription stays
# close. Instead each format is held against the bounds of its precision.
BOUNDS = "its formats against their bounds, and adamw_8bit against adamw, in test_storage.py"
RANDOM = dict.fromkeys(OPTIMIZERS, BOUNDS)
