"""A small residual network for images, with self-attention if wanted."""

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
from jopt.models.attention import Attention
from jopt.models.checks import check_heads, check_images
from jopt.models.convolution import convolve
from jopt.models.normalization import NORMS, Norm

PIXEL_POSITIONS: tuple[str, ...] = ("learned", "none")


class ResNet(nn.Module):
    """Residual blocks of convolutions in stages, on images of shape (batch, height, width, channels).

        x → conv → [block × blocks → attention?] × len(features)
          → norm → activation → mean over pixels → dropout → dense → logits

        block       x → x + conv(act(norm(conv(act(norm(x))))))        "pre-activation"
        attention   x → x + attention(norm(x) + positions?)

    Each stage but the first starts with a stride of 2; there a 1 × 1 convolution of act(norm(x)) stands for
    the first x of the sum. The last kernel of each branch starts at zero, so a network of any depth starts
    as its shortcuts.

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
        x = self._conv("stem", self.features[0], matching_initializer(self.activation))(x)
        for stage, channels in enumerate(self.features):
            for i in range(blocks[stage]):
                stride = 2 if stage > 0 and i == 0 else 1
                x = self._block(f"stage_{stage}_block_{i}", x, channels, stride, train)
            if stage in attention:
                x = self._attend(f"stage_{stage}_attention", x, train)
        x = self._normal_and_active("last", x, train).mean(axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init or output_initializer(), name="output")(x)

    # Methods, not modules: Flax 0.11's bridge to nnx loses the parameters of a batch norm that lies deeper.

    def _block(self, name: str, x: jax.Array, channels: int, stride: int, train: bool) -> jax.Array:
        """Two convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""
        y = self._normal_and_active(f"{name}_0", x, train)
        if stride != 1 or x.shape[-1] != channels:
            x = self._conv(f"{name}_shortcut", channels, output_initializer(), side=1, stride=stride)(y)
        y = self._conv(f"{name}_conv_0", channels, matching_initializer(self.activation), stride=stride)(y)
        y = self._normal_and_active(f"{name}_1", y, train)
        return x + self._conv(f"{name}_conv_1", channels, nn.initializers.zeros)(y)

    def _attend(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        """Self-attention over all pixels of an image beside a residual."""
        batch, height, width, channels = x.shape
        pixels = Norm(self.norm, train, name=f"{name}_norm")(x).reshape(batch, height * width, channels)
        if self.positions == "learned":
            table = nn.Embed(height * width, channels, name=f"{name}_positions")
            pixels = pixels + table.embedding.astype(x.dtype)[None]
        return x + Attention(self.heads, kernel_init=self.kernel_init, name=name)(pixels).reshape(x.shape)

    def _normal_and_active(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        x = Norm(self.norm, train, name=f"{name}_norm")(x)
        return activation_of(self, self.activation, f"{name}_slope")(x)

    def _conv(self, name: str, channels: int, init: Initializer, side: int | None = None, stride: int = 1) -> nn.Conv:
        window = (side or self.kernel,) * 2
        return nn.Conv(
            channels,
            window,
            (stride, stride),
            use_bias=self.norm == "none",
            kernel_init=self.kernel_init or init,
            conv_general_dilated=convolve,
            name=name,
        )

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
