"""A small residual network for images, with self-attention if wanted."""

from collections.abc import Callable, Sequence

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
from jopt.models.attention import Attention
from jopt.models.checks import check_heads, check_images
from jopt.models.convolution import convolve
from jopt.models.normalization import NORMS, Norm

PIXEL_POSITIONS: tuple[str, ...] = ("learned", "none")

Function = Callable[[jax.Array], jax.Array]


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, each after its normalisation and activation ("pre-activation").

        x → y = act(norm(x))        y → x + conv(act(norm(conv(y))))

    Where the shape changes, a 1 × 1 convolution of y stands for x. The last kernel of the branch starts
    at zero, so a network of any depth starts as its shortcuts.

    Args:
        channels: channels of the output.
        stride: step of the first convolution in pixels; 2 halves both sides.
        kernel, activation, norm, kernel_init: as in `ResNet`.
    """

    channels: int
    stride: int
    kernel: int
    activation: str
    norm: str
    kernel_init: Initializer | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(name: str, side: int, stride: int, init: Initializer) -> Function:
            return nn.Conv(
                self.channels,
                (side, side),
                (stride, stride),
                use_bias=self.norm == "none",
                kernel_init=self.kernel_init or init,
                conv_general_dilated=convolve,
                name=name,
            )

        y = Norm(self.norm, train, name="norm_0")(x)
        y = activation_of(self, self.activation, "slope_0")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = conv("shortcut", 1, self.stride, output_initializer())(y)
        y = conv("conv_0", self.kernel, self.stride, matching_initializer(self.activation))(y)
        y = Norm(self.norm, train, name="norm_1")(y)
        y = activation_of(self, self.activation, "slope_1")(y)
        return x + conv("conv_1", self.kernel, 1, nn.initializers.zeros)(y)


class PixelAttention(nn.Module):
    """Self-attention over all pixels of an image beside a residual; starts as the identity.

        x → x + attention(norm(x) + positions?)

    Args:
        heads, positions, norm, kernel_init: as in `ResNet`.
    """

    heads: int
    positions: str
    norm: str
    kernel_init: Initializer | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        batch, height, width, channels = x.shape
        pixels = Norm(self.norm, train, name="norm")(x).reshape(batch, height * width, channels)
        if self.positions == "learned":
            table = nn.Embed(height * width, channels, name="positions")
            pixels = pixels + table.embedding.astype(x.dtype)[None]
        return x + Attention(self.heads, kernel_init=self.kernel_init, name="attention")(pixels).reshape(x.shape)


class ResNet(nn.Module):
    """Residual blocks of convolutions in stages, on images of shape (batch, height, width, channels).

        x → conv → [residual block × blocks → attention?] × len(features)
          → norm → activation → mean over pixels → dropout → dense → logits

    Each stage but the first starts with a stride of 2.

    Args:
        features: channels of each stage.
        outputs: number of outputs (logits).
        blocks: residual blocks of each stage, one number for all or one for each.
        kernel: side of the square window of each convolution, in pixels.
        activation: a name in `jopt.models.ACTIVATIONS`.
        norm: "batch" keeps running statistics in `batch_stats`; "group" normalises each image by itself, in
            groups of up to 8 channels; "layer" each pixel; "none".
        attention: True lets the pixels of the last stage see each other; or the indices of the stages.
        heads: attention heads, a divisor of the stage's channels.
        positions: "learned" tells the attention where each pixel is, and fixes the size of the images; "none".
        dropout: share of the values in front of the output layer set to zero in training, in [0, 1).
        kernel_init: initialiser of every kernel. None: the one that matches `activation`, and zeros for the
            last kernel of each residual branch.

    Call with `train=True` to switch on dropout (needs `rngs={"dropout": key}`) and batch
    statistics (needs `mutable=["batch_stats"]`).
    """

    features: Sequence[int]
    outputs: int
    blocks: int | Sequence[int] = 1
    kernel: int = 3
    activation: str = "relu"
    norm: str = "batch"
    attention: bool | Sequence[int] = False
    heads: int = 4
    positions: str = "learned"
    dropout: float = 0.0
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        blocks, attention = self._check(x)
        x = nn.Conv(
            self.features[0],
            (self.kernel, self.kernel),
            use_bias=self.norm == "none",
            kernel_init=self.kernel_init or matching_initializer(self.activation),
            conv_general_dilated=convolve,
            name="stem",
        )(x)
        for stage, channels in enumerate(self.features):
            for i in range(blocks[stage]):
                x = ResidualBlock(
                    channels,
                    stride=2 if stage > 0 and i == 0 else 1,
                    kernel=self.kernel,
                    activation=self.activation,
                    norm=self.norm,
                    kernel_init=self.kernel_init,
                    name=f"stage_{stage}_block_{i}",
                )(x, train)
            if stage in attention:
                name = f"stage_{stage}_attention"
                x = PixelAttention(self.heads, self.positions, self.norm, self.kernel_init, name=name)(x, train)
        x = Norm(self.norm, train, name="norm")(x)
        x = activation_of(self, self.activation, "slope")(x).mean(axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init or output_initializer(), name="output")(x)

    def _check(self, x: jax.Array) -> tuple[Sequence[int], set[int]]:
        """Check the arguments; the blocks of each stage, and the stages with attention."""
        check_choice("ResNet", "activation", self.activation, ACTIVATIONS)
        check_choice("ResNet", "norm", self.norm, NORMS)
        check_choice("ResNet", "positions", self.positions, PIXEL_POSITIONS)
        check_images("ResNet", x)
        stages = len(self.features)
        blocks = [self.blocks] * stages if isinstance(self.blocks, int) else self.blocks
        if len(blocks) != stages or min(blocks, default=0) < 1:
            raise ValueError(
                f"ResNet: blocks={self.blocks} was given for {stages} stages, one number from 1 up or one for each "
                f"entry of features={self.features} was expected. Pass for example blocks=1."
            )
        if isinstance(self.attention, bool):
            chosen = [stages - 1] if self.attention else []
        else:
            chosen = list(self.attention)
        if any(not -stages <= stage < stages for stage in chosen):
            raise ValueError(
                f"ResNet: attention={self.attention} was given for {stages} stages, indices from {-stages} to "
                f"{stages - 1} were expected. Pass attention=True for the last stage."
            )
        attention = {stage % stages for stage in chosen}
        for stage in attention:
            check_heads("ResNet", self.features[stage], self.heads)
        return blocks, attention
