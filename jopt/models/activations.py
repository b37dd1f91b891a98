"""Activations by name, and the weight deviation that keeps the signal's size through them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]
Activation = Callable[[jax.Array], jax.Array]

LEAKY_SLOPE = 0.01  # fixed slope of leaky_relu
PRELU_SLOPE = 0.25  # slope at which prelu starts to learn


def _leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, LEAKY_SLOPE)


# prelu has no entry of its own kind: its slope is a parameter, which `activation_of` makes.
_FIXED: dict[str, Activation] = {
    "relu": nn.relu,
    "leaky_relu": _leaky_relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}
_SLOPES = {"relu": 0.0, "leaky_relu": LEAKY_SLOPE, "prelu": PRELU_SLOPE, "elu": 0.0, "gelu": 0.0}

ACTIVATIONS: tuple[str, ...] = ("relu", "leaky_relu", "prelu", "elu", "gelu", "sigmoid", "tanh")


def check_choice(call: str, argument: str, value: str, choices: Sequence[str]) -> None:
    """Raise a `ValueError` that lists `choices` unless `value` is one of them."""
    if value not in choices:
        raise ValueError(
            f"{call}: {argument}={value!r} was given, one of {', '.join(choices)} was expected. "
            f"Pass for example {argument}={choices[0]!r}."
        )


def matching_initializer(activation: str) -> Initializer:
    """Initialiser for a kernel whose output goes through `activation`.

        relu family     std = √(2 / ((1 + a²) n_in))        He; a is the slope left of zero
        sigmoid, tanh   std = √(2 / (n_in + n_out))          Xavier (Glorot)

    Both draw from a normal distribution cut at two deviations and widened to have that `std`.
    elu and gelu count as a = 0, prelu as its starting slope.

    Args:
        activation: a name in `ACTIVATIONS`.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("matching_initializer", "activation", activation, ACTIVATIONS)
    if activation in _SLOPES:
        gain = 2.0 / (1.0 + _SLOPES[activation] ** 2)
        return jax.nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
    return output_initializer()


def output_initializer() -> Initializer:
    """Xavier initialiser, for the last layer and for gates: what follows is linear or a sigmoid."""
    return jax.nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")


def activation_of(module: nn.Module, name: str, slope: str = "slope") -> Activation:
    """The function called `name`; for prelu, with a learned slope that becomes a parameter of `module`.

    Args:
        module: the module that is running; it owns the slope.
        name: a name in `ACTIVATIONS`.
        slope: name of the slope parameter, distinct for each layer of one module.
    """
    check_choice(type(module).__name__, "activation", name, ACTIVATIONS)
    if name != "prelu":
        return _FIXED[name]
    a = module.param(slope, jax.nn.initializers.constant(PRELU_SLOPE), ())
    return lambda x: jnp.where(x >= 0, x, a * x)
