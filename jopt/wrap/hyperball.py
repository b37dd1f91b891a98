"""Steps of fixed length on the sphere on which a parameter starts."""

from typing import Any

from jopt.partition import chain, partition
from jopt.paths import everything_else, ndim
from jopt.paths import where as choose
from jopt.rules.norms import scale_by_hyperball_rate
from jopt.rules.scale import scale_by_learning_rate
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, as_transform, leaves_of


def hyperball(
    tx: Any,
    learning_rate: ScalarOrSchedule,
    rest_learning_rate: ScalarOrSchedule | None = None,
    *,
    where: Any = None,
) -> Transform:
    """Keep matrices on the sphere of their first norm, and make every step on it equally long.

        x = p − γ u r / ‖u‖,   p ← x r / ‖x‖,   r = ‖p₀‖,   u = tx(g)

    With ``hyperball(scale_by_adam(), 0.01)`` this is AdamH, with `scale_by_muon` MuonH. It needs no
    weight decay.

    Args:
        tx: gives the direction, uphill and without a learning rate: `scale_by_adam`, not `adam`. A foreign
            transform (of optax) must point uphill too: it is not checked.
        learning_rate: γ ≥ 0; √(γλ) of a tuned AdamW is a good start.
        rest_learning_rate: of all other parameters, which step by −γ u; None takes `learning_rate`.
        where: which parameters stay on their sphere; None takes those of two axes or more. Leave out
            what carries a scale. Parameters that start at zero have no sphere, and step as the others.

    Raises:
        ValueError: `tx` has a learning rate of its own.

    Reference: [wen2026fantastic].
    """
    tx = as_transform(tx, "hyperball")
    rated = [part.name for part in leaves_of(tx.parts) if "learning_rate" in dict(part.hyper)]
    if rated:
        raise ValueError(
            f"hyperball: {tx!r} was given, a transform without a learning rate was expected; it has {rated}. "
            f"Pass the rule alone, for example scale_by_adam(), and the rate to hyperball."
        )
    spheres = ~ndim(0, 1) if where is None else choose(where)
    rest = learning_rate if rest_learning_rate is None else rest_learning_rate
    cases = [
        ("hyperball", spheres, scale_by_hyperball_rate(learning_rate)),
        ("rest", everything_else, scale_by_learning_rate(rest)),
    ]
    return chain(tx, partition(cases, idle="allow"))
