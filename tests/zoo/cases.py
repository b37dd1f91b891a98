"""How a factory is replayed against its transcription (`Replay`), and against optax (`Against`)."""

import dataclasses
import math

import jopt
from jopt import schedules

SHAPES = {"kernel": (5, 3), "bias": (5,), "gain": (), "wide": (3, 6), "filters": (2, 2, 3, 2)}
LEAVES = ["kernel", "bias", "gain"]  # the others only where a rule looks at shapes
UNITS = [*LEAVES, "filters"]
MATRICES = ["kernel", "wide"]
# In float32 each step rounds the parameter by up to 3e-8 of itself: 1000 steps of one small size, all rounded
# the same way, add up to 3e-5. This is the parameter's dtype, not the rule's arithmetic.
ROUNDED = (1e-12, 3e-5)


@dataclasses.dataclass(frozen=True)
class Both:
    """One schedule twice: jopt's, and NumPy's of the step from 0."""

    jopt: object
    numpy: object


FALL = Both(schedules.exponential_decay(0.05, 300, 0.5), lambda n: 0.05 * 0.5 ** (n / 300))
RISE = Both(schedules.linear_schedule(0.8, 0.95, 500), lambda n: 0.8 + 0.15 * min(n / 500, 1.0))
FADE = Both(schedules.cosine_decay_schedule(0.1, 1000), lambda n: 0.05 * (1.0 + math.cos(math.pi * n / 1000)))


class Replay:
    """A factory with its numbers, and how it is replayed.

    Args:
        name: of the factory in jopt and of its oracle.
        only: leaves to run on.
        masked: {number: leaves on which it holds}; it is 0 on the others.
        static: arguments that jopt alone is given.
        slow: left to the slow tier.
        tolerance: relative bounds (float64, float32) where the usual ones cannot hold.
        tree: whether the oracle takes and returns dicts over the tree.
        last: whether updates are steps already, though it is no optimizer.
        value: whether update and oracle are given the loss.
        **numbers: arguments of both.
    """

    def __init__(
        self,
        name,
        only=LEAVES,
        masked=None,
        static=None,
        slow=False,
        tolerance=(1e-12, 1e-5),
        tree=False,
        last=False,
        value=False,
        **numbers,
    ):
        self.name, self.only, self.masked, self.numbers = name, only, masked or {}, numbers
        self.static, self.slow, self.tolerance = static or {}, slow, tolerance
        self.tree, self.last, self.value = tree, last, value

    def __repr__(self):
        shown = [n + ("@" if isinstance(v, Both) else f"={v}" * (v is not True)) for n, v in self.numbers.items()]
        return "-".join([self.name, *shown, *self.static]).replace(" ", "")

    @property
    def steps_itself(self):
        return self.last or self.name in jopt.optimizers.__all__

    def transform(self):
        given = {name: value.jopt if isinstance(value, Both) else value for name, value in self.numbers.items()}
        return getattr(jopt, self.name)(**given, **self.static)

    def numbers_at(self, t, leaf, real):
        """The numbers of step t as `real` holds them: jopt's live numbers are float32 without x64."""
        found = {}
        for name, value in self.numbers.items():
            value = value.numpy(t - 1) if isinstance(value, Both) else value
            value = 0.0 if leaf not in self.masked.get(name, [leaf]) else value
            found[name] = float(real(value)) if isinstance(value, float) else value
        return found


def on(leaves, number="weight_decay", **static):
    """A mask: jopt is given `static`, and the oracle the number on these leaves alone."""
    return {"static": static, "masked": {number: leaves}}


# Against optax -----------------------------------------------------------------------------------

PARITY_SHAPES = {"kernel": (5, 3), "bias": (5,), "gain": ()}
PARITY_MATRICES = {"kernel": (5, 3), "bias": (3, 6)}
# optax weights a square by the constant 0.001 where float32 has 1 − 0.999 = 0.00099998713: updates are 6.5e-6 apart,
# and a parameter, which is a sum of them with cancellation, up to a little more than twice that.
B2 = {"f32": 2e-5}

DECAYING = schedules.exponential_decay(0.05, 30, 0.5)


def no_bias(params):
    return {name: name != "bias" for name in params}


MASK = {"kernel": True, "bias": False, "gain": True}
OTHER = {"kernel": True, "bias": True, "gain": False}


class Against:
    """A call of both libraries.

    Args:
        name: of the factory in jopt.
        *args: positional, in optax's order.
        theirs: the name in optax, where it differs.
        only: leaves to run on.
        f32: relative bound in float32; the bound in float64 is `f64`.
        coarser: how many times optax's rounding error ours may be in float32.
        slow: left to the slow tier.
        bare: whether it gives a direction, of which a small multiple is subtracted.
        value: whether update is given the loss.
        last: whether an update is a small difference of parameters, so that these alone are compared.
        **kwargs: keywords of both.
    """

    def __init__(
        self,
        name,
        *args,
        theirs=None,
        only=PARITY_SHAPES,
        f32=1e-5,
        f64=1e-12,
        coarser=2,
        slow=False,
        bare=False,
        value=False,
        last=False,
        **kwargs,
    ):
        self.name, self.args, self.kwargs, self.only, self.f32, self.slow = name, args, kwargs, only, f32, slow
        self.coarser = coarser
        self.theirs, self.f64, self.bare, self.value, self.last = theirs or name, f64, bare, value, last

    def __repr__(self):
        shown = [f"{a:.3g}" if isinstance(a, float) else type(a).__name__ for a in self.args]
        return "-".join([self.name, *shown, *(f"{k}={v}" for k, v in self.kwargs.items())]).replace(" ", "")
