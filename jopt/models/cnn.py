"""A small convolutional network for images."""

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
from jopt.models.checks import check_images
from jopt.models.convolution import convolve
from jopt.models.normalization import Norm


class CNN(nn.Module):
    """Convolutions, then dense layers, on images of shape (batch, height, width, channels).

        x → [conv → batch norm? → activation → pool?] × len(features)
          → flatten → dropout? → [dense → activation → dropout?] × len(dense) → dense → logits

    Args:
        features: channels of each convolution.
        outputs: number of outputs (logits).
        dense: width of each dense layer between the convolutions and the output.
        kernel: side of the square window of each convolution, in pixels.
        pool: the indices of `features` after which a 2 × 2 maximum halves both sides.
        activation: a name in `jopt.models.ACTIVATIONS`.
        dropout: share of the values in front of each dense layer set to zero in training, in [0, 1).
        batch_norm: normalise after each convolution; keeps running statistics in `batch_stats`.
        kernel_init: initialiser of every kernel instead of the one that matches `activation`.

    Call with `train=True` to switch on dropout (needs `rngs={"dropout": key}`) and batch
    statistics (needs `mutable=["batch_stats"]`).
    """

    features: Sequence[int]
    outputs: int
    dense: Sequence[int] = ()
    kernel: int = 3
    pool: Sequence[int] = (0,)
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_choice("CNN", "activation", self.activation, ACTIVATIONS)
        check_images("CNN", x)
        init = self.kernel_init or matching_initializer(self.activation)
        for i, channels in enumerate(self.features):
            window = (self.kernel, self.kernel)
            x = nn.Conv(
                channels,
                window,
                use_bias=not self.batch_norm,
                kernel_init=init,
                conv_general_dilated=convolve,
                name=f"conv_{i}",
            )(x)
            if self.batch_norm:
                x = Norm("batch", train, name=f"norm_{i}")(x)
            x = activation_of(self, self.activation, f"conv_slope_{i}")(x)
            if i in self.pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        for i, width in enumerate(self.dense):
            x = nn.Dense(width, kernel_init=init, name=f"dense_{i}")(x)
            x = activation_of(self, self.activation, f"dense_slope_{i}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init or output_initializer(), name="output")(x)
