"""The orthogonal polar factor of a matrix, approximately: Newton-Schulz iterations and their coefficients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.lapack import singular_values
from jopt.linalg import is_sharded, matmul, norm, norm_dtype

Triple = tuple[float, float, float]

# Tuned for slope at 0 and not for convergence: σ lands in about [0.7, 1.2], which is all Muon needs [jordan2024muon].
MUON_COEFFICIENTS: Triple = (3.4445, -4.7750, 2.0315)

# Optimal polynomials for σ in [1e-3, 1] [amsel2025polar], for a matrix divided by 1.02 of its norm, so that
# rounding never takes σ above 1.
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_SAFETY = 1.02

COEFFICIENTS: dict[str, Any] = {
    "standard": MUON_COEFFICIENTS,
    "jordan": MUON_COEFFICIENTS,
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # p(x / 1.02) as a polynomial of x: the factor goes into the first triple.
    "polar_express": (
        tuple(number / _SAFETY**power for number, power in zip(_POLAR_EXPRESS[0], (1, 3, 5), strict=True)),
        *_POLAR_EXPRESS[1:],
    ),
}
"""Sets of coefficients by name; `standard` and `jordan` are one triple for any number of steps."""

PRECONDITIONINGS = ("frobenius", "spectral", "aol", "schatten")

# An iteration on the Gram matrix pays where the other side is so much longer: 8m²n + 28m³ against 20m²n + 10m³.
_LONG = 1.5
# Rounding of a small eigenvalue of the Gram matrix grows a² times per step, and one that is pushed below zero far
# enough diverges: after so much growth the matrix is computed afresh, but for the last step, which nothing follows.
_GROWTH = 1e2
# Below this size half of a symmetric product costs more in small pieces than the whole (measured, 2 quiet cores).
_SPLIT = 320


def triples(coefficients: Any, steps: int) -> tuple[Triple, ...]:
    """A triple (a, b, c) for each step, from one for all steps, one for each, or the name of a set."""
    found = COEFFICIENTS[coefficients] if isinstance(coefficients, str) else coefficients
    return found[:steps] if isinstance(found[0], tuple) else (found,) * steps


# Compiled also where it is called op by op: there jaxlib 0.7.2 at times multiplies arrays that it has freed already.
@functools.partial(jax.jit, static_argnames=("coefficients", "preconditioning", "accelerator"))
def newton_schulz(
    x: jax.Array,
    coefficients: tuple[Triple, ...],
    eps: Any,
    preconditioning: str = "frobenius",
    accelerator: bool = False,
) -> jax.Array:
    """Approximate the orthogonal polar factor of one matrix (m, n).

        X ← X / (‖X‖ + eps),  then per step:  A = XXᵀ,  X ← aX + (bA + cA²)X

    Args:
        x: the matrix; a complex one is taken with its conjugate transpose.
        coefficients: a triple (a, b, c) per step.
        eps: added to the norm, so that a zero matrix stays zero.
        preconditioning: "spectral" has the largest singular value in place of ‖X‖; after ‖X‖ "schatten"
            divides by the fourth root of Σσ⁴, "aol" each row by the root of its sum in |XXᵀ| (X wide).
        accelerator: whether float32 may be multiplied in bfloat16.

    A matrix with a side 1.5 times the other is iterated on its Gram matrix, at the shorter side.
    """
    dtype, tall = x.dtype, x.shape[0] > x.shape[1]
    x = _adjoint(x) if tall else x
    size = _spectral_norm(x) if preconditioning == "spectral" else norm(x)
    x = x / (size + jnp.asarray(eps, norm_dtype(x))).astype(x.dtype)
    blocked = not accelerator and not is_sharded(x)
    x, gram = _precondition(x, preconditioning, blocked)
    short = accelerator and dtype == jnp.float32
    if short:  # where rounding is coarse, eigenvalues of the Gram matrix would fall below zero
        x, gram = x.astype(jnp.bfloat16), None if gram is None else gram.astype(jnp.bfloat16)
    by_gram = x.shape[1] > _LONG * x.shape[0] and not short and not is_sharded(x)
    x = (_iterate_gram if by_gram else _iterate)(x, gram, coefficients, blocked).astype(dtype)
    return _adjoint(x) if tall else x


def _spectral_norm(x: jax.Array) -> jax.Array:
    if not x.size:
        return norm(x)
    size = norm(x)
    return singular_values(x / jnp.where(size > 0, size, 1).astype(x.dtype))[0] * size


def _precondition(x: jax.Array, kind: str, blocked: bool) -> tuple[jax.Array, jax.Array | None]:
    """A matrix of norm 1, scaled once more, and its Gram matrix where that came along."""
    if kind in ("frobenius", "spectral"):
        return x, None
    least = jnp.asarray(1e-8, norm_dtype(x))  # of what is near 1, or 0
    gram = _symmetric(x, x, blocked)
    if kind == "schatten":
        scale = jax.lax.rsqrt(jnp.maximum(norm(gram), least)).astype(x.dtype)
        return scale * x, scale * scale * gram
    rows = jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.abs(gram), axis=1, keepdims=True), least)).astype(x.dtype)
    return rows * x, rows * gram * rows.T if blocked else None


def _iterate(x: jax.Array, gram: jax.Array | None, coefficients: tuple[Triple, ...], blocked: bool) -> jax.Array:
    """The steps on the matrix itself; `gram` is that of the first."""

    def step(x, numbers, gram=None):
        a, b, c = numbers
        gram = _symmetric(x, x, blocked) if gram is None else gram
        return a * x + matmul(b * gram + c * _symmetric(gram, gram, blocked), x)

    if gram is not None and coefficients:
        x, coefficients = step(x, _numbers(coefficients[:1], x)[0], gram), coefficients[1:]
    if not coefficients:
        return x
    return jax.lax.scan(lambda x, numbers: (step(x, numbers), None), x, _numbers(coefficients, x))[0]


def _iterate_gram(x: jax.Array, gram: jax.Array | None, coefficients: tuple[Triple, ...], blocked: bool) -> jax.Array:
    """The same steps as one product QX, where Q = p₁(A)p₂(A)... and A ← p(A)A p(A) commute."""
    q: Any = None
    restarts, eye = _restarts(coefficients), jnp.eye(len(x), dtype=x.dtype)
    for i, (a, b, c) in enumerate(_numbers(coefficients, x)):
        if i in restarts:
            x, q, gram = matmul(q, x), None, None
        gram = _symmetric(x, x, blocked) if gram is None else gram
        p = b * gram + c * _symmetric(gram, gram, blocked) + a * eye
        q = p if q is None else _symmetric(q, p, blocked)
        if i + 1 < len(coefficients) and i + 1 not in restarts:
            gram = _symmetric(_symmetric(gram, p, blocked), p, blocked)
            # What rounding leaves of an antisymmetric part would grow with every step.
            gram = (gram + _adjoint(gram)) * jnp.asarray(0.5, x.dtype)
    return x if q is None else matmul(q, x)


def _numbers(coefficients: tuple[Triple, ...], x: jax.Array) -> np.ndarray:
    return np.asarray(coefficients, x.dtype)


def _restarts(coefficients: tuple[Triple, ...]) -> set[int]:
    """The steps before which the Gram matrix is computed from the matrix."""
    found, growth = set(), 1.0
    for i, (a, _, _) in enumerate(coefficients):
        if growth > _GROWTH and i + 1 < len(coefficients):
            found.add(i)
            growth = 1.0
        growth *= a * a
    return found


def _symmetric(a: jax.Array, b: jax.Array, blocked: bool) -> jax.Array:
    """abᴴ, which the caller knows to be symmetric: in blocks, of which those below the diagonal are copied."""
    m = a.shape[0]
    if not blocked or m < _SPLIT:
        return matmul(a, _adjoint(b))
    (a0, a1), (b0, b1) = ((x[: m // 2], x[m // 2 :]) for x in (a, b))
    corner = matmul(a0, _adjoint(b1))
    top = jnp.concatenate([_symmetric(a0, b0, blocked), corner], axis=1)
    return jnp.concatenate([top, jnp.concatenate([_adjoint(corner), _symmetric(a1, b1, blocked)], axis=1)])


def orthogonality_error(x: Any) -> Any:
    """How far a matrix is from orthogonal: ‖XXᵀ − I‖ / √m over its shorter side m, 0 if it is, 1 at X = 0.

    Args:
        x: a matrix, or several as (..., rows, columns); or a tree of these, in which arrays of fewer
            axes become None. Measure an update before the learning rate and the factor of its shape:
            ``chain(scale_by_muon(), monitor({"orthogonality": orthogonality_error}), ...)``.

    Raises:
        ValueError: an array by itself has fewer than two axes.
    """
    if hasattr(x, "ndim") and x.ndim < 2:
        raise ValueError(
            f"orthogonality_error: an array of shape {tuple(x.shape)} was given, a matrix, several as "
            f"(..., rows, columns), or a tree of them was expected. Give it two axes."
        )
    return jax.tree.map(lambda leaf: _orthogonality_error(leaf) if leaf.ndim >= 2 else None, x)


def _orthogonality_error(x: jax.Array) -> jax.Array:
    wide = jnp.swapaxes(x, -1, -2).conj() if x.shape[-2] > x.shape[-1] else x
    m = wide.shape[-2]
    gram = wide @ jnp.swapaxes(wide, -1, -2).conj()
    difference = gram - jnp.broadcast_to(jnp.eye(m, dtype=x.dtype), gram.shape)
    squares = jnp.sum(jnp.square(jnp.abs(difference)), axis=(-2, -1))
    return jnp.sqrt(squares / max(m, 1))


def _adjoint(x: jax.Array) -> jax.Array:
    return x.T.conj() if jnp.iscomplexobj(x) else x.T
