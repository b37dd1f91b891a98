"""Optimizers that take a matrix as a matrix."""

import optax.contrib

import jopt
from jopt.axes import matrices
from zoo.cases import (
    DECAYING,
    FADE,
    FALL,
    LEAVES,
    MASK,
    MATRICES,
    PARITY_MATRICES,
    ROUNDED,
    Against,
    Replay,
    no_bias,
)
from zoo.entry import Entry, rated

MATRIX = {"complex": None, "elementwise": False}

# A singular vector turns by rounding over the gap to its neighbour, at every new projector.
PROJECTED = {"ulps": 1024, **MATRIX}


def muon_axes(rate):
    """Declared axes, by a case that also trees without such a leaf are fine with, as `muon(axes=...)` is not."""
    axes = [(jopt.path("dense/kernel") & jopt.ndim(2), 1, 0)]
    steps = jopt.chain(jopt.scale_by_muon(axes=axes), jopt.scale_by_shape(axes=axes), jopt.scale_by_learning_rate(rate))
    return jopt.partition(
        [("muon", matrices(axes), steps), ("adam", jopt.everything_else, jopt.nadam(rate))], idle="allow"
    )


OPTIMIZERS = {
    "galore": rated(lambda rate: jopt.galore(rate, rank=3, update_proj_gap=2), **PROJECTED),
    "galore_full_rank": rated(lambda rate: jopt.galore(rate, weight_decay=0.1), zero_gradient=False, **PROJECTED),
    "muon": rated(jopt.muon, **MATRIX),
    "muon_axes": rated(
        muon_axes,
        reads_paths=True,
        namespace=(("matrices", matrices),),
        **MATRIX,
    ),
    "normuon": rated(jopt.normuon, **MATRIX),
    "scion": rated(lambda rate: jopt.scion(rate, radius=1.0), **MATRIX),
    "scion_constrained": rated(lambda rate: jopt.scion(rate, constrained=True), zero_gradient=False, **MATRIX),
}

RULES = {
    "qk_clip": Entry(
        lambda: jopt.qk_clip(100.0, 0.3, queries="dense/kernel", keys="out/*"),
        complex=None,
        zero_gradient=False,
        reads_paths=True,
        extra=(("max_logits", 200.0),),
    ),
    "rms_lmo": Entry(jopt.rms_lmo, elementwise=False, complex="native"),
    "scale_by_galore": Entry(
        lambda: jopt.scale_by_galore(2, update_proj_gap=3, scale=0.25), matrices_only=True, **PROJECTED
    ),
    "scale_by_galore_any": Entry(lambda: jopt.scale_by_galore(2, update_proj_gap=3, axes="any"), **PROJECTED),
    "scale_by_muon": Entry(jopt.scale_by_muon, matrices_only=True, **MATRIX),
    "scale_by_muon_aol": Entry(
        # Its first steps multiply small singular values, and their rounding, by 4.1 and 4.0, "standard" by 3.4.
        lambda: jopt.scale_by_muon("dion", preconditioning="aol"),
        matrices_only=True,
        ulps=256,
        **MATRIX,
    ),
    "scale_by_normuon": Entry(jopt.scale_by_normuon, matrices_only=True, **MATRIX),
    "scale_by_shape": Entry(jopt.scale_by_shape, matrices_only=True, complex="native"),
    "scale_by_shape_consistent": Entry(
        lambda: jopt.scale_by_shape(consistent_rms=0.2), matrices_only=True, complex="native"
    ),
    "sign_lmo": Entry(jopt.sign_lmo, elementwise=False),
    "spectral_lmo": Entry(jopt.spectral_lmo, matrices_only=True, **MATRIX),
}


# Newton-Schulz multiplies small singular values by 3.4445 at each of 5 steps, that is by up to 485, and
# the rounding of its input with them.
NEWTON_SCHULZ = (1e-11, 5e-4)

# A singular vector turns by rounding over the gap to its neighbour; with unlike magnitudes small ones lose digits.
SINGULAR = (1e-9, 2e-2)

ORACLES = [
    Replay("scale_by_galore", only=MATRICES, rank=2, tolerance=SINGULAR),
    Replay("scale_by_galore", only=MATRICES, update_proj_gap=7, scale=0.25, b1=0.8, tolerance=SINGULAR, slow=True),
    Replay("scale_by_galore", only=MATRICES, rank=1, update_proj_gap=1, b2=0.9, tolerance=SINGULAR, slow=True),
    Replay("galore", only=[*LEAVES, "wide"], learning_rate=0.003, rank=2, tolerance=SINGULAR, slow=True),
    Replay(
        "galore",
        only=[*LEAVES, "wide"],
        learning_rate=FALL,
        rank=2,
        update_proj_gap=50,
        scale=0.5,
        weight_decay=FADE,
        tolerance=SINGULAR,
    ),
    Replay("scale_by_muon", only=MATRICES, tolerance=NEWTON_SCHULZ, slow=True),
    Replay("scale_by_muon", only=MATRICES, beta=0.9, nesterov=False, ns_steps=3, tolerance=NEWTON_SCHULZ, slow=True),
    Replay(
        "scale_by_muon",
        only=MATRICES,
        ns_coeffs=((4.0, -6.9, 3.4), (2.9, -3.1, 1.2)),
        ns_steps=2,
        tolerance=NEWTON_SCHULZ,
    ),
    Replay("scale_by_muon", only=MATRICES, ns_coeffs="dion", tolerance=NEWTON_SCHULZ, slow=True),
    *(
        Replay("scale_by_muon", only=MATRICES, preconditioning=kind, tolerance=NEWTON_SCHULZ, slow=True)
        for kind in ("spectral", "schatten", "aol")
    ),
    Replay("scale_by_muon", only=MATRICES, adaptive=True, tolerance=NEWTON_SCHULZ, slow=True),
    Replay("scale_by_shape", only=MATRICES),
    Replay("scale_by_shape", only=MATRICES, consistent_rms=0.2),
    Replay("muon", only=[*LEAVES, "wide"], learning_rate=0.01, tolerance=NEWTON_SCHULZ, slow=True),
    Replay(
        "muon",
        learning_rate=FALL,
        weight_decay=0.1,
        consistent_rms=0.2,
        adam_learning_rate=0.003,
        adam_weight_decay=FADE,
        tolerance=NEWTON_SCHULZ,
    ),
    Replay("scale_by_normuon", only=MATRICES, tolerance=NEWTON_SCHULZ),
    Replay("scale_by_normuon", only=MATRICES, beta=0.9, b2=0.99, nesterov=False, tolerance=NEWTON_SCHULZ, slow=True),
    Replay("normuon", learning_rate=FALL, weight_decay=0.1, consistent_rms=0.2, tolerance=NEWTON_SCHULZ, slow=True),
    Replay("spectral_lmo", only=MATRICES, radius=2.0, tolerance=NEWTON_SCHULZ),
    Replay("sign_lmo", radius=2.5, tolerance=ROUNDED),
    Replay("rms_lmo"),
    Replay("scion", learning_rate=0.0005, tolerance=NEWTON_SCHULZ),
    Replay("scion", learning_rate=FALL, decay=0.95, radius=2.0, constrained=True, tolerance=NEWTON_SCHULZ, slow=True),
]

RANDOM = {"qk_clip": "it needs logits: by its numbers, in test_matrix.py"}

SYMBOLS = {
    "scale_by_galore": {"projector": ("P",), "mu": ("M",), "nu": ("V",)},
    "scale_by_muon": {"mu": ("m",)},
    "scale_by_normuon": {"mu": ("m",), "nu": ("v",)},
}


# Rounding of 1 − β in float32 starts the iteration elsewhere; small singular values grow 485 ×. On the Gram matrix of
# a long matrix, where optax iterates on the matrix, rounding grows by another a² = 11.9 (see `jopt.polar`).
CLOSE = {"f32": 2e-3, "f64": 1e-11, "coarser": 12}

ROUTED = {"kernel": optax.contrib.MuonDimensionNumbers(1, 0), "bias": None, "gain": None}
STACKED = {"kernel": (3, 2, 4), "bias": (5, 4, 2, 3)}


def stacked(params):
    """optax's form: a stack of matrices in its middle axis, and a kernel of a convolution."""
    numbers = optax.contrib.MuonDimensionNumbers
    return {"kernel": numbers(0, 2), "bias": numbers((0, 1, 2), -1)}


# Square matrices: of others optax projects the longer side. It decomposes in float32, also under x64; and the signs it
# takes are those of the decomposition, so that a second projector would be another one.
SQUARE = {"kernel": (5, 5), "bias": (5,)}
JOINED = {"kernel": (3, 2, 6), "bias": (5,)}
DECOMPOSED = {"f32": 3e-4, "f64": 3e-4}

UNCOMPARED = {"scale_by_galore": "inside galore: the recorded bias, as a matrix, has rows of rounding alone"}


def by_axes(params):
    """optax's form: the first two axes of the kernel are its rows."""
    return {"kernel": optax.contrib.GaLoreDimensionNumbers((0, 1), -1), "bias": None}


EXCEPTIONS = {
    "galore": "Adam is inside, in place of base_optimizer; the rest by keyword",
    "scale_by_galore": "see galore",
}

OPTAX = [
    Against("galore", 0.01, 4, weight_decay=0.03, only=SQUARE, **DECOMPOSED),
    Against("galore", DECAYING, 2, 100, 0.25, mask=no_bias, weight_decay=0.1, only=SQUARE, slow=True, **DECOMPOSED),
    Against("galore", 0.01, 2, weight_dimension_numbers=by_axes, only=JOINED, slow=True, **DECOMPOSED),
    Against("muon", 0.01, **CLOSE),
    Against("muon", 0.01, ((4.0, -6.9, 3.4), (2.9, -3.1, 1.2)), 2, 0.9, 1e-7, 0.03, MASK, None, slow=True, **CLOSE),
    Against(
        "muon", DECAYING, nesterov=False, adam_b1=0.8, adam_learning_rate=0.02, consistent_rms=0.2, slow=True, **CLOSE
    ),
    Against(
        "muon", 0.01, adam_b2=0.95, adam_eps_root=1e-6, adam_weight_decay=0.03, weight_decay=0.1, slow=True, **CLOSE
    ),
    Against("muon", 0.01, "dion", adaptive=True, slow=True, **CLOSE),
    *(Against("muon", 0.01, preconditioning=kind, slow=True, **CLOSE) for kind in ("spectral", "schatten", "aol")),
    Against("muon", 0.01, muon_weight_dimension_numbers=ROUTED, weight_decay=0.03, slow=True, **CLOSE),
    Against("muon", 0.01, muon_weight_dimension_numbers=stacked, only=STACKED, **CLOSE),
    Against("scale_by_muon", only=PARITY_MATRICES, slow=True, bare=True, **CLOSE),
    Against(
        "scale_by_muon",
        (4.0, -6.9, 3.4),
        3,
        0.9,
        1e-7,
        nesterov=False,
        only=PARITY_MATRICES,
        slow=True,
        bare=True,
        **CLOSE,
    ),
]
