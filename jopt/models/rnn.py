"""Recurrent networks: simple, GRU and LSTM cells.

The cells are written here, not taken from Flax: one matrix product makes the inputs of all
steps before the scan, a fused recurrent kernel serves all gates, and prelu can own its slope
(a parameter cannot be made inside a scan).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jopt.models.activations import (
    ACTIVATIONS,
    Activation,
    Initializer,
    activation_of,
    check_choice,
    matching_initializer,
    output_initializer,
)
from jopt.models.checks import check_sequence

Carry = tuple[jax.Array, ...]


def simple_step(carry: Carry, x: jax.Array, kernel: jax.Array, activation: Activation) -> Carry:
    """Elman's cell:  h ← f(x + h W), where x is the input after its own kernel and bias."""
    (h,) = carry
    return (activation(x + h @ kernel),)


def gru_step(carry: Carry, x: jax.Array, kernel: jax.Array, activation: Activation) -> Carry:
    """Gated recurrent unit, with the reset gate applied after the recurrent product.

    r, z = σ(x + h W)        n = f(xₙ + r · h Wₙ)        h ← (1 − z) n + z h
    """
    (h,) = carry
    gates_x, new_x = jnp.split(x, [2 * h.shape[-1]], axis=-1)
    gates_h, new_h = jnp.split(h @ kernel, [2 * h.shape[-1]], axis=-1)
    r, z = jnp.split(nn.sigmoid(gates_x + gates_h), 2, axis=-1)
    n = activation(new_x + r * new_h)
    return ((1 - z) * n + z * h,)


def lstm_step(carry: Carry, x: jax.Array, kernel: jax.Array, activation: Activation) -> Carry:
    """Long short-term memory.

    i, f, o = σ(x + h W)     g = f(x_g + h W_g)     c ← f · c + i · g     h ← o · f(c)
    """
    h, c = carry
    gates, g = jnp.split(x + h @ kernel, [3 * h.shape[-1]], axis=-1)
    i, f, o = jnp.split(nn.sigmoid(gates), 3, axis=-1)
    c = f * c + i * activation(g)
    return (o * activation(c), c)


# name → (step, sigmoid gates, arrays in the carry; the first is h)
_CELLS: dict[str, tuple[Callable[..., Carry], int, int]] = {
    "simple": (simple_step, 0, 1),
    "gru": (gru_step, 2, 1),
    "lstm": (lstm_step, 3, 2),
}
CELLS: tuple[str, ...] = tuple(_CELLS)


def _side_by_side(inits: Sequence[Initializer]) -> Initializer:
    """One kernel for all gates, each drawn on its own: the fans are a gate's, not the whole kernel's."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        rows, columns = shape
        keys = jax.random.split(key, len(inits))
        return jnp.concatenate(
            [draw(k, (rows, columns // len(inits)), dtype) for draw, k in zip(inits, keys, strict=True)], axis=1
        )

    return init


def _recurrent_kernel(gates: int, kernel_init: Initializer | None) -> Initializer:
    # Orthogonal: the memory keeps its length however many steps it goes through.
    return _side_by_side([kernel_init or jax.nn.initializers.orthogonal()] * gates)


def _forget_nothing_at_first(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
    # A forget gate that starts at σ(1) = 0.73 lets the gradient reach early steps; at σ(0) it halves at each.
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)


class Weight(nn.Module):
    """A bare matrix whose path ends in `kernel` as all others do, so that one pattern finds them all."""

    shape: Sequence[int]
    kernel_init: Initializer

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", self.kernel_init, tuple(self.shape))


class RNN(nn.Module):
    """Recurrent layers over a sequence, with an output from the last state or at every step.

        x → embed? → [cell over time → dropout?] × len(features) → last state or all states → dense → logits

    Args:
        features: number of units of each recurrent layer.
        outputs: number of outputs (logits).
        cell: a name in `jopt.models.CELLS`.
        per_step: logits at every step, (batch, time, outputs), instead of (batch, outputs).
        vocabulary: number of symbols; the input is then integers (batch, time), each embedded in
            `features[0]` numbers. None: the input is numbers (batch, time, channels).
        activation: a name in `jopt.models.ACTIVATIONS`, of the candidate state; gates are sigmoids.
        dropout: share of each layer's outputs set to zero in training, in [0, 1).
        kernel_init: initialiser of every kernel. None: the one that matches `activation` (Xavier for
            gates) for inputs, orthogonal for the recurrence.

    Call with `train=True` to switch on dropout (needs `rngs={"dropout": key}`).
    """

    features: Sequence[int]
    outputs: int
    cell: str = "gru"
    per_step: bool = False
    vocabulary: int | None = None
    activation: str = "tanh"
    dropout: float = 0.0
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_choice("RNN", "activation", self.activation, ACTIVATIONS)
        check_choice("RNN", "cell", self.cell, CELLS)
        check_sequence("RNN", x, self.vocabulary)
        if self.vocabulary is not None:
            x = nn.Embed(self.vocabulary, self.features[0], name="embed")(x)
        for i, units in enumerate(self.features):
            x = self._layer(x, units, i)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x if self.per_step else x[:, -1]
        return nn.Dense(self.outputs, kernel_init=self.kernel_init or output_initializer(), name="output")(x)

    def _layer(self, x: jax.Array, units: int, i: int) -> jax.Array:
        """All states of one recurrent layer: (batch, time, channels) → (batch, time, units)."""
        step, gates, arrays = _CELLS[self.cell]
        activation = activation_of(self, self.activation, f"slope_{i}")
        candidate = self.kernel_init or matching_initializer(self.activation)
        x = nn.Dense(
            (gates + 1) * units,
            kernel_init=_side_by_side([self.kernel_init or output_initializer()] * gates + [candidate]),
            bias_init=_forget_nothing_at_first if self.cell == "lstm" else nn.initializers.zeros,
            name=f"input_{i}",
        )(x)
        recurrent = Weight(
            (units, (gates + 1) * units), _recurrent_kernel(gates + 1, self.kernel_init), name=f"recurrent_{i}"
        )()

        def advance(carry: Carry, x: jax.Array) -> tuple[Carry, jax.Array]:
            carry = step(carry, x, recurrent, activation)
            return carry, carry[0]

        start = (jnp.zeros((x.shape[0], units), x.dtype),) * arrays
        _, states = jax.lax.scan(advance, start, x.swapaxes(0, 1))
        return states.swapaxes(0, 1)
