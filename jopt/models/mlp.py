"""A multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jopt.models.activations import (
    ACTIVATIONS,
    Initializer,
    activation_of,
    check_choice,
    matching_initializer,
    output_initializer,
)
from jopt.models.normalization import Norm


class MLP(nn.Module):
    """Dense layers with an activation between them; every axis but the first is flattened.

        x → [dense → batch norm? → activation → dropout?] × len(features) → dense → logits

    Args:
        features: width of each hidden layer.
        outputs: number of outputs (logits).
        activation: a name in `jopt.models.ACTIVATIONS`.
        dropout: share of hidden values set to zero in training, in [0, 1).
        batch_norm: normalise before the activation; keeps running statistics in `batch_stats`.
        kernel_init: initialiser of every kernel instead of the one that matches `activation`.

    Call with `train=True` to switch on dropout (needs `rngs={"dropout": key}`) and batch
    statistics (needs `mutable=["batch_stats"]`).
    """

    features: Sequence[int]
    outputs: int
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_choice("MLP", "activation", self.activation, ACTIVATIONS)
        hidden_init = self.kernel_init or matching_initializer(self.activation)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            x = nn.Dense(width, use_bias=not self.batch_norm, kernel_init=hidden_init, name=f"hidden_{i}")(x)
            if self.batch_norm:
                x = Norm("batch", train, name=f"norm_{i}")(x)
            x = activation_of(self, self.activation, f"slope_{i}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init or output_initializer(), name="output")(x)
