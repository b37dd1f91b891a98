"""A small Transformer over a sequence: a language model, or a reader that sees the whole sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jopt.models.activations import (
    ACTIVATIONS,
    Initializer,
    activation_of,
    check_choice,
    matching_initializer,
    output_initializer,
)
from jopt.models.attention import Attention
from jopt.models.checks import check_heads, check_sequence
from jopt.models.normalization import Norm

POSITIONS: tuple[str, ...] = ("rotary", "learned", "none")


class TransformerBlock(nn.Module):
    """Attention between steps, then a perceptron at each, both after their normalisation ("pre-norm").

        x → x + dropout?(attention(norm(x)))        x → x + dropout?(dense(act(dense(norm(x)))))

    The last kernel of both branches starts at zero: the block starts as the identity.

    Args:
        heads, ratio, causal, activation, dropout, kernel_init: as in `Transformer`.
        rotary: rotary positions in the attention.
    """

    heads: int
    ratio: float
    causal: bool
    rotary: bool
    activation: str
    dropout: float
    kernel_init: Initializer | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Norm("layer", name="norm_0")(x)
        y = Attention(self.heads, self.causal, self.rotary, self.kernel_init, name="attention")(y)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = Norm("layer", name="norm_1")(x)
        hidden_init = self.kernel_init or matching_initializer(self.activation)
        y = nn.Dense(round(self.ratio * x.shape[-1]), kernel_init=hidden_init, name="hidden")(y)
        y = activation_of(self, self.activation)(y)
        y = nn.Dense(x.shape[-1], kernel_init=self.kernel_init or nn.initializers.zeros, name="out")(y)
        return x + nn.Dropout(self.dropout, deterministic=not train)(y)


class Transformer(nn.Module):
    """Blocks of self-attention and a perceptron, with an output at every step or from their mean.

        x → embed or dense → + positions? → dropout → [attention → perceptron] × layers
          → norm → mean over time? → dense → logits

    Args:
        width: channels of every step between input and output.
        outputs: number of outputs (logits).
        layers: number of blocks.
        heads: attention heads, a divisor of `width`.
        ratio: hidden units of the perceptron as a multiple of `width`.
        causal: a step sees itself and the steps before it only, as a model that predicts the next
            symbol must; False: it sees all.
        per_step: logits at every step, (batch, time, outputs), instead of (batch, outputs).
        vocabulary: number of symbols; the input is then integers (batch, time). None: the input is
            numbers (batch, time, channels).
        tied: the output layer is the embedding of the symbols, transposed; `outputs` is then `vocabulary`.
        positions: "rotary" for distances, of any length; "learned", one vector for each of `length`
            steps; "none".
        length: the longest sequence that learned positions serve, in steps.
        activation: a name in `jopt.models.ACTIVATIONS`, of the perceptrons.
        dropout: share of the embedded input and of each branch's output set to zero in training, in [0, 1).
        kernel_init: initialiser of every kernel. None: the one that matches `activation`, Xavier for what no
            activation follows, and zeros for the last kernel of each branch.

    Call with `train=True` to switch on dropout (needs `rngs={"dropout": key}`).
    """

    width: int
    outputs: int
    layers: int = 2
    heads: int = 4
    ratio: float = 4.0
    causal: bool = True
    per_step: bool = False
    vocabulary: int | None = None
    tied: bool = False
    positions: str = "rotary"
    length: int = 256
    activation: str = "gelu"
    dropout: float = 0.0
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self._check(x)
        linear = self.kernel_init or output_initializer()
        embed = None if self.vocabulary is None else nn.Embed(self.vocabulary, self.width, name="embed")
        x = nn.Dense(self.width, kernel_init=linear, name="input")(x) if embed is None else embed(x)
        if self.positions == "learned":
            steps = jnp.arange(x.shape[1])
            x = x + nn.Embed(self.length, self.width, name="positions")(steps)[None]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.layers):
            x = TransformerBlock(
                self.heads,
                self.ratio,
                self.causal,
                rotary=self.positions == "rotary",
                activation=self.activation,
                dropout=self.dropout,
                kernel_init=self.kernel_init,
                name=f"block_{i}",
            )(x, train)
        x = Norm("layer", name="norm")(x)
        x = x if self.per_step else x.mean(axis=1)
        if embed is not None and self.tied:
            return embed.attend(x)
        return nn.Dense(self.outputs, kernel_init=linear, name="output")(x)

    def _check(self, x: jax.Array) -> None:
        check_choice("Transformer", "activation", self.activation, ACTIVATIONS)
        check_choice("Transformer", "positions", self.positions, POSITIONS)
        check_heads("Transformer", self.width, self.heads, even=self.positions == "rotary")
        check_sequence("Transformer", x, self.vocabulary)
        if self.tied and self.vocabulary != self.outputs:
            raise ValueError(
                f"Transformer: tied=True was given with vocabulary={self.vocabulary} and outputs={self.outputs}, "
                f"equal numbers were expected: the output layer is the embedding. Pass tied=False, or make them equal."
            )
        if self.positions == "learned" and x.shape[1] > self.length:
            raise ValueError(
                f"Transformer: an input of {x.shape[1]} steps was given, at most length={self.length} were expected: "
                f"so many positions are learned. Pass a larger length=, or positions='rotary'."
            )
