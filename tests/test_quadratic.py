"""The noisy quadratic of the benchmarks is the published one."""

import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks import quadratic


def test_its_losses_are_the_published_ones():
    q, train, test = quadratic.problem()
    eigenvalues = np.linalg.eigvalsh(q)
    assert (eigenvalues > 30).sum() == 10
    assert (eigenvalues < 1).sum() == 90
    assert train.shape == (1000, 100)
    assert test.shape == (896, 100)
    ones, mean = jnp.ones(100), jnp.asarray(train.mean(axis=0))
    np.testing.assert_allclose(quadratic.test_loss(ones), 353.4468, atol=2e-3)
    np.testing.assert_allclose(quadratic.test_loss(mean), quadratic.OPTIMUM, atol=1e-3)
    np.testing.assert_allclose(quadratic.loss(ones, test, q.astype(np.float32)), 353.4468, atol=2e-3)


def test_gradient_descent_follows_its_published_curve():
    losses = quadratic.runs(jopt.sgd, 0.0158, seeds=4, epochs=5)
    np.testing.assert_allclose(np.mean(losses, axis=0)[[1, 2, 5]], [105.330, 102.922, 97.695], rtol=5e-3)


def test_epochs_to_a_target():
    losses = [[5.0, 3.0, 1.0, 2.0], [5.0, 4.0, 4.0, 4.0], [1.0, 9.0, 9.0, 9.0]]
    np.testing.assert_array_equal(quadratic.epochs_to(losses, 2.0), [2, np.inf, 0])
