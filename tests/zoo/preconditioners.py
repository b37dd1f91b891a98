"""SOAP, Shampoo, PSGD and other preconditioners."""

import jopt
from zoo.cases import FADE, FALL, MATRICES, Replay, on
from zoo.entry import Entry, rated

# An eigenvector turns by rounding over the gap to its neighbour.
MATRIX = {"complex": None, "elementwise": False, "ulps": 1024}


def blocked(rate):
    return jopt.shampoo(rate, grafting="rmsprop", precondition_frequency=1, max_preconditioner_size=5, axes="any")


def one_sided():
    return jopt.scale_by_shampoo(b2=1.0, grafting="none", one_sided=True, axes="any")


OPTIMIZERS = {
    "kl_soap": rated(jopt.kl_soap, zero_gradient=False, **MATRIX),
    "kron": rated(jopt.kron, random=True, **MATRIX),
    "shampoo": rated(jopt.shampoo, **MATRIX),
    "shampoo_blocked": rated(blocked, **MATRIX),
    "soap": rated(jopt.soap, zero_gradient=False, **MATRIX),
    "soap_each_step": rated(lambda rate: jopt.soap(rate, weight_decay=0.0, precondition_frequency=1), **MATRIX),
}

RULES = {
    "scale_by_kl_soap": Entry(jopt.scale_by_kl_soap, matrices_only=True, **MATRIX),
    "scale_by_kron": Entry(jopt.scale_by_kron, random=True, **MATRIX),
    "scale_by_shampoo": Entry(jopt.scale_by_shampoo, matrices_only=True, **MATRIX),
    "scale_by_shampoo_one_sided": Entry(one_sided, **MATRIX),
    "scale_by_soap": Entry(jopt.scale_by_soap, matrices_only=True, **MATRIX),
    "scale_by_soap_one_side": Entry(lambda: jopt.scale_by_soap(max_precond_dim=5), matrices_only=True, **MATRIX),
}


# Against their transcriptions ---------------------------------------------------------------------

# An eigenvector turns by rounding over the gap to its neighbour; with unlike magnitudes small ones lose digits.
SOAP = (1e-9, 2e-2)

# Roots of small eigenvalues hold the digits of the largest: λmax / λ times the rounding, raised to the exponent.
SHAMPOO = (1e-9, 2e-2)
KERNEL_ONLY = {"kernel": True, "bias": False, "gain": False}
ANY = {"axes": "any"}  # no vector: one of its elements never has a gradient, and the roots there are rounding alone

ORACLES = [
    Replay("scale_by_kl_soap", only=["kernel"], tolerance=SOAP),
    Replay("scale_by_kl_soap", only=["kernel"], precondition_frequency=1, b1=0.9, tolerance=SOAP, slow=True),
    Replay("kl_soap", learning_rate=0.003, tolerance=SOAP, slow=True),
    Replay("scale_by_soap", only=["kernel"], tolerance=SOAP),
    Replay("scale_by_soap", only=MATRICES, precondition_frequency=1, b1=0.9, b2=0.98, tolerance=SOAP, slow=True),
    Replay("scale_by_soap", only=["wide"], max_precond_dim=4, shampoo_beta=0.9, eps=1e-4, tolerance=SOAP, slow=True),
    Replay("soap", learning_rate=0.003, tolerance=SOAP, slow=True),
    Replay("soap", learning_rate=FALL, weight_decay=FADE, tolerance=SOAP, **on(["kernel"], mask=KERNEL_ONLY)),
    Replay("scale_by_shampoo", only=["kernel"], tolerance=SHAMPOO),
    Replay("scale_by_shampoo", only=MATRICES, precondition_frequency=1, grafting="sgd", tolerance=SHAMPOO, slow=True),
    Replay(
        "scale_by_shampoo",
        only=["kernel", "gain"],
        static=ANY,
        b2=1.0,
        grafting="none",
        one_sided=True,
        precondition_frequency=1,
        tolerance=SHAMPOO,
    ),
    Replay(
        "scale_by_shampoo",
        only=MATRICES,
        static=ANY,
        max_preconditioner_size=2,
        grafting="adagrad",
        exponent=0.3,
        precondition_frequency=1,
        tolerance=SHAMPOO,
        slow=True,
    ),
    Replay("shampoo", learning_rate=0.01, momentum=0.9, nesterov=True, tolerance=SHAMPOO, slow=True),
    Replay(
        "shampoo",
        only=["kernel", "gain"],
        learning_rate=FALL,
        grafting="rmsprop",
        axes="any",
        weight_decay=FADE,
        precondition_frequency=1,
        tolerance=SHAMPOO,
    ),
]

ROTATED = {
    "mu": ("M",),
    "nu": ("V",),
    "left": ("L",),
    "right": ("R",),
    "left_basis": ("QL",),
    "right_basis": ("QR",),
}
SYMBOLS = {
    "scale_by_kl_soap": ROTATED,
    "scale_by_shampoo": {
        "mu": ("M",),
        "nu": ("V",),
        "left": ("L",),
        "right": ("R",),
        "left_root": ("Lroot",),
        "right_root": ("Rroot",),
    },
    "scale_by_soap": ROTATED,
}

RANDOM = {
    "kron": "by what its factors learn, in test_preconditioners.py",
    "scale_by_kron": "by what its factors learn, in test_preconditioners.py",
}
