"""The one list of optimizers, rules and wrappers that the laws run over; an unlisted public one fails."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import jopt
from jopt.paths import everything_else
from jopt.testing import Subject
from jopt.wrap.monitor import monitor_gradients, monitor_updates


@dataclasses.dataclass(frozen=True)
class Entry:
    """A factory with what it declares; each field but the first is one of `jopt.testing.Subject`.

    Args:
        make: makes the transform, with typical numbers; an optimizer's takes the learning rate.
        value: whether update needs ``value=``.
        rated: whether `make` takes one number.
    """

    make: Callable[..., jopt.Transform]
    zero_gradient: bool = True
    complex: str | None = "pair"
    elementwise: bool = True
    matrices_only: bool = False
    random: bool = False
    reads_paths: bool = False
    value: bool = False
    rated: bool = False
    ulps: float = 64
    namespace: tuple[tuple[str, Any], ...] = ()

    def declared(self) -> dict[str, Any]:
        """What `check_transform` is told of it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        make, value, rated = own.pop("make"), own.pop("value"), own.pop("rated")
        own["namespace"] = dict(own["namespace"])
        return own | {"factory": make if rated else None, "extra": {"value": 1.0} if value else {}}

    def subject(self) -> Subject:
        """The transform under test."""
        return Subject(self.make(), **self.declared())


RATE = 0.05


def rated(make: Callable[..., jopt.Transform], **declared: Any) -> Entry:
    """An optimizer, made from its learning rate alone."""
    return Entry(lambda rate=RATE: make(rate), rated=True, **declared)


FADING = jopt.schedules.inverse_time_decay_schedule(0.9, 1.0, 1)


def scheduled(decay: Any) -> jopt.Transform:
    """An optimizer whose numbers follow schedules, but for the decay."""
    return jopt.adamw(jopt.schedules.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8), b1=FADING, weight_decay=decay)


def halve_step(g, s, p):
    return g / 2, s


def halve() -> jopt.Transform:
    """A rule as a user writes one."""
    return jopt.rule("halve", halve_step)


def halve_all_update(grads, own, params):
    return {path: g / 2 for path, g in grads.items()}, own


def halve_all() -> jopt.Transform:
    """A part over the whole tree as a user writes one."""
    return jopt.whole(jopt.Whole("halve_all", halve_all_update))


OPTIMIZERS = {
    "adadelta": rated(jopt.adadelta),
    "adagrad": rated(jopt.adagrad),
    "adam": rated(jopt.adam),
    "adam_nesterov": rated(lambda rate: jopt.adam(rate, nesterov=True)),
    "adam_uncorrected": rated(lambda rate: jopt.adam(rate, bias_correction=False)),
    "adamax": rated(jopt.adamax),
    "adamaxw": rated(jopt.adamaxw, zero_gradient=False),
    "adamw": rated(jopt.adamw, zero_gradient=False),
    "adamw_bfloat16": rated(lambda rate: jopt.adamw(rate, mu_dtype=jnp.bfloat16), zero_gradient=False),
    "adamw_scheduled": rated(scheduled, zero_gradient=False),
    "adamw_where": rated(lambda rate: jopt.adamw(rate, where="**/kernel"), zero_gradient=False, reads_paths=True),
    "amsgrad": rated(jopt.amsgrad),
    "lamb": rated(lambda rate: jopt.lamb(rate, weight_decay=0.01), zero_gradient=False, elementwise=False),
    "lars": rated(jopt.lars, elementwise=False),
    "lion": rated(jopt.lion, zero_gradient=False),
    "momentum": rated(jopt.momentum),
    "muon": rated(jopt.muon, complex=None, elementwise=False),
    "nadam": rated(jopt.nadam),
    "nadamw": rated(jopt.nadamw, zero_gradient=False),
    "nesterov": rated(jopt.nesterov),
    "rmsprop": rated(jopt.rmsprop),
    "rmsprop_centered": rated(lambda rate: jopt.rmsprop(rate, centered=True, momentum=0.9)),
    "sgd": rated(jopt.sgd),
    "sign_sgd": rated(jopt.sign_sgd),
    "signum": rated(jopt.signum),
}

ARRAY = {"elementwise": False, "complex": "native"}

RULES = {
    "identity": Entry(jopt.identity),
    "nesterov_trace": Entry(lambda: jopt.nesterov_trace(0.9)),
    "normalize_by_update_norm": Entry(jopt.normalize_by_update_norm),
    "scale": Entry(lambda: jopt.scale(-0.5)),
    "scale_by_adadelta": Entry(jopt.scale_by_adadelta),
    "scale_by_adam": Entry(jopt.scale_by_adam),
    "scale_by_adamax": Entry(jopt.scale_by_adamax),
    "scale_by_amsgrad": Entry(jopt.scale_by_amsgrad),
    "scale_by_ema": Entry(lambda: jopt.scale_by_ema(0.9)),
    "scale_by_learning_rate": Entry(lambda: jopt.scale_by_learning_rate(RATE)),
    "scale_by_lion": Entry(jopt.scale_by_lion),
    "scale_by_muon": Entry(jopt.scale_by_muon, complex=None, elementwise=False, matrices_only=True),
    "scale_by_nadam": Entry(jopt.scale_by_nadam),
    "scale_by_rms": Entry(jopt.scale_by_rms),
    "scale_by_rms_corrected": Entry(lambda: jopt.scale_by_rms(eps_in_sqrt=False, bias_correction=True)),
    "scale_by_root_sum": Entry(jopt.scale_by_root_sum),
    "scale_by_rss": Entry(jopt.scale_by_rss),
    "scale_by_schedule": Entry(lambda: jopt.scale_by_schedule(FADING)),
    "scale_by_shape": Entry(jopt.scale_by_shape, matrices_only=True, complex="native"),
    "scale_by_shape_consistent": Entry(lambda: jopt.scale_by_shape(0.2), matrices_only=True, complex="native"),
    "scale_by_sign": Entry(jopt.scale_by_sign),
    "scale_by_stddev": Entry(jopt.scale_by_stddev),
    "scale_by_trust_ratio": Entry(jopt.scale_by_trust_ratio, elementwise=False),
    "scale_by_uncorrected_adam": Entry(jopt.scale_by_uncorrected_adam),
    "set_to_zero": Entry(jopt.set_to_zero),
    "trace": Entry(lambda: jopt.trace(0.9)),
    # Clipping and cleaning.
    "adaptive_grad_clip": Entry(lambda: jopt.adaptive_grad_clip(0.1), **ARRAY),
    "centralize": Entry(jopt.centralize, **ARRAY),
    "clip": Entry(lambda: jopt.clip(0.5)),
    "clip_by_block_rms": Entry(lambda: jopt.clip_by_block_rms(0.5), **ARRAY),
    "clip_by_global_norm": Entry(lambda: jopt.clip_by_global_norm(0.5)),
    "zero_nans": Entry(jopt.zero_nans),
    # Regularization.
    "add_decayed_weights": Entry(lambda: jopt.add_decayed_weights(0.01), zero_gradient=False),
    "add_l1_subgradient": Entry(lambda: jopt.add_l1_subgradient(0.01), zero_gradient=False),
    "add_noise": Entry(lambda: jopt.add_noise(0.1, 0.55), zero_gradient=False, random=True),
    "clip_params": Entry(lambda: jopt.clip_params(-0.5, 0.5), zero_gradient=False),
    "keep_params_nonnegative": Entry(jopt.keep_params_nonnegative, zero_gradient=False),
    "max_norm_constraint": Entry(lambda: jopt.max_norm_constraint(0.5), zero_gradient=False, **ARRAY),
    "soft_threshold": Entry(lambda: jopt.soft_threshold(0.5, RATE), zero_gradient=False),
    # With the loss.
    "reduce_on_plateau": Entry(lambda: jopt.reduce_on_plateau(patience=1), value=True),
}

WRAPPERS = {
    "accumulate": Entry(lambda: jopt.accumulate(jopt.adam(RATE), every=2)),
    "accumulate_apply": Entry(lambda: jopt.accumulate(jopt.skip_nonfinite(jopt.momentum(RATE)), every=2)),
    "average_params": Entry(lambda: jopt.average_params(0.9)),
    "chain": Entry(lambda: jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(RATE)), zero_gradient=False),
    "ema": Entry(lambda: jopt.ema(jopt.adam(RATE), 0.9)),
    "freeze": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.freeze(where="out/*")), reads_paths=True),
    "masked": Entry(
        lambda: jopt.chain(jopt.masked(jopt.scale_by_adam(), where="**/kernel"), jopt.scale_by_learning_rate(RATE)),
        reads_paths=True,
    ),
    "monitor": Entry(
        lambda: jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adam(RATE))),
        namespace=(("monitor_gradients", monitor_gradients), ("monitor_updates", monitor_updates)),
    ),
    "partition": Entry(
        lambda: jopt.partition(
            [("**/kernel", jopt.adam(RATE)), ("rest", everything_else, jopt.sgd(RATE))], idle="allow"
        ),
        reads_paths=True,
    ),
    "plateau_adam": Entry(lambda: jopt.chain(jopt.adam(RATE), jopt.reduce_on_plateau(patience=1)), value=True),
    "rule": Entry(halve, namespace=(("halve", halve),)),
    "skip_nonfinite": Entry(lambda: jopt.skip_nonfinite(jopt.adam(RATE))),
    "whole": Entry(halve_all, namespace=(("halve_all", halve_all),)),
}


EVERYTHING = OPTIMIZERS | RULES | WRAPPERS
