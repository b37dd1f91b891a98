"""Ready-made Flax models: MLP, CNN, ResNet, RNN and Transformer, initialised to match their activation.

They are Flax **linen** modules. Linen is functional, like jopt: parameters are a plain pytree
that enters and leaves `init` and `apply`, so a whole epoch compiles as one `scan`, and the same
lines run on Flax 0.11 and 0.12, while nnx still changes between the two. In an nnx program use
`flax.nnx.bridge.ToNNX(MLP(...), rngs=nnx.Rngs(0)).lazy_init(x)`.
"""

try:
    import flax.linen as _linen  # noqa: F401
except ImportError as error:
    raise ImportError(
        "import jopt.models: the package flax is not installed; the models are Flax modules. "
        'Install it with: pip install "jopt[flax]"'
    ) from error

from jopt.models.activations import ACTIVATIONS, matching_initializer, output_initializer
from jopt.models.cnn import CNN
from jopt.models.mlp import MLP
from jopt.models.normalization import NORMS
from jopt.models.resnet import ResNet
from jopt.models.rnn import CELLS, RNN
from jopt.models.transformer import POSITIONS, Transformer

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "CNN",
    "MLP",
    "NORMS",
    "POSITIONS",
    "RNN",
    "ResNet",
    "Transformer",
    "matching_initializer",
    "output_initializer",
]
