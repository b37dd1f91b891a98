"""SOAP, Shampoo, PSGD and other preconditioners."""

import jopt
from zoo.cases import FADE, FALL, Replay, on
from zoo.entry import Entry, rated

# An eigenvector turns by rounding over the gap to its neighbour.
MATRIX = {"complex": None, "elementwise": False, "ulps": 1024}

OPTIMIZERS = {
    "soap": rated(jopt.soap, zero_gradient=False, **MATRIX),
    "soap_each_step": rated(lambda rate: jopt.soap(rate, weight_decay=0.0, precondition_frequency=1), **MATRIX),
}

RULES = {
    "scale_by_soap": Entry(jopt.scale_by_soap, matrices_only=True, **MATRIX),
    "scale_by_soap_one_side": Entry(lambda: jopt.scale_by_soap(max_precond_dim=5), matrices_only=True, **MATRIX),
}


# Against their transcriptions ---------------------------------------------------------------------

# An eigenvector turns by rounding over the gap to its neighbour; with unlike magnitudes small ones lose digits.
SOAP = (1e-9, 2e-2)

ORACLES = [
    Replay("scale_by_soap", only=["kernel"], tolerance=SOAP),
    Replay("scale_by_soap", only=["kernel", "wide"], precondition_frequency=1, b1=0.9, b2=0.98, tolerance=SOAP),
    Replay("scale_by_soap", only=["wide"], max_precond_dim=4, shampoo_beta=0.9, eps=1e-4, tolerance=SOAP),
    Replay("soap", learning_rate=0.003, tolerance=SOAP),
    Replay(
        "soap",
        learning_rate=FALL,
        weight_decay=FADE,
        tolerance=SOAP,
        **on(["kernel"], where=None, mask={"kernel": True, "bias": False, "gain": False}),
    ),
]

SYMBOLS = {
    "scale_by_soap": {
        "mu": ("M",),
        "nu": ("V",),
        "left": ("L",),
        "right": ("R",),
        "left_basis": ("QL",),
        "right_basis": ("QR",),
    },
}
