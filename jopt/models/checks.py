"""What the models accept, and what they say to anything else."""

import jax
import jax.numpy as jnp


def check_images(call: str, x: jax.Array) -> None:
    """Raise a `ValueError` unless `x` has the four axes of a batch of images."""
    if x.ndim != 4:
        raise ValueError(
            f"{call}: an input of shape {x.shape} was given, (batch, height, width, channels) was expected. "
            f"Add the missing axis, for example x[..., None] for grey images."
        )


def check_sequence(call: str, x: jax.Array, vocabulary: int | None) -> None:
    """Raise a `ValueError` unless `x` is numbers (batch, time, channels); with `vocabulary`, integers (batch, time)."""
    if vocabulary is None and x.ndim != 3:
        raise ValueError(
            f"{call}: an input of shape {x.shape} was given, (batch, time, channels) was expected. "
            f"Add the missing axis, or pass vocabulary= to embed integers of shape (batch, time)."
        )
    if vocabulary is not None and (x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer)):
        raise ValueError(
            f"{call}: with vocabulary={vocabulary}, an input {x.dtype}{list(x.shape)} was given, integers "
            f"of shape (batch, time) were expected. Drop vocabulary= if the input is numbers."
        )


def check_heads(call: str, channels: int, heads: int, even: bool = False) -> None:
    """Raise a `ValueError` unless `heads` heads share `channels` evenly (`even`: in an even number for each)."""
    if heads < 1 or channels % heads or (even and channels // heads % 2):
        each = "an even number of channels" if even else "the same number of channels"
        raise ValueError(
            f"{call}: heads={heads} was given for {channels} channels, a number of heads that gives each {each} "
            f"was expected. Pass for example heads={channels // 2 if even else channels}, or other widths."
        )
