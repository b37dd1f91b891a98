"""`fit`: from arrays, a model and a transform to trained parameters."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jopt.state import eval_params
from jopt.train import resume as resume_
from jopt.train.arguments import (
    batch_size_of,
    check_rules,
    choice,
    feeds,
    key_of,
    listed,
    model_of,
    transform_of,
    whole,
)
from jopt.train.evaluate import needs_eval_fn
from jopt.train.fragile import Fragile, name_of
from jopt.train.history import History
from jopt.train.loggers import as_logger
from jopt.train.loop import FINISHED, Job, Loop, copy, finite_budget
from jopt.train.losses import as_loss
from jopt.train.objective import objective
from jopt.train.progress import make_progress
from jopt.train.signals import Requests, requests
from jopt.train.step import Optimizer
from jopt.train.step import start as start_
from jopt.transform import Transform

POWERS = {None: 0.0, "linear": 1.0, "sqrt": 0.5}


@dataclasses.dataclass(frozen=True, repr=False)
class Fit:
    """What training gives back.

    Attributes:
        params: trained parameters; with `early_stopping(restore_best=True)` the best ones.
        state: of the optimizer, beside `params`.
        model_state: of the model, such as batch statistics; None without one.
        history: a row for every record.
        eval_params: the parameters to evaluate with: averaged ones where the transform keeps them.
        stopped_because: why training ended.
        step, epoch: done.
        seconds: it took, and `compile_seconds` of them until the first program was compiled.
        skipped: steps that were not finite and changed nothing.
        steps_per_call: what "auto" came to.
        loss_fn: the loss or adapter.
        tx: the transform.
        resumable: what `fit(start=...)` goes on from.
    """

    params: Any
    state: Any
    model_state: Any
    history: History
    eval_params: Any
    stopped_because: str
    step: int
    epoch: float
    seconds: float
    compile_seconds: float
    skipped: int
    steps_per_call: int
    loss_fn: Any
    tx: Transform
    resumable: Any

    @property
    def finished(self) -> bool:
        """Whether all steps were done."""
        return self.stopped_because == FINISHED

    def model(self, *, average: bool = True) -> Any:
        """The Flax model with the trained arrays: a new nnx module, or a bound linen module.

        Args:
            average: take `eval_params`, not `params`.

        Raises:
            TypeError: training was by a plain loss function, which has no model.
        """
        if not hasattr(self.loss_fn, "rebuild"):
            raise TypeError(
                f"Fit.model: training was by the function {name_of(self.loss_fn)!r}, a Flax model or its adapter was "
                f"expected. Call fit(model, ..., loss=...), or put fit.params into your model."
            )
        return self.loss_fn.rebuild(self.eval_params if average else self.params, self.model_state)

    def __repr__(self) -> str:
        last = {name: x for name, x in (self.history[-1] if self.history else {}).items() if "/" not in name}
        shown = ", ".join(f"{name}={x:.4g}" for name, x in last.items() if name not in ("step", "epoch", "seconds"))
        return f"<Fit: step {self.step}, epoch {self.epoch:.4g}, {self.seconds:.1f} s; {self.stopped_because}; {shown}>"


class NonFiniteError(ArithmeticError):
    """Too many steps in a row were not finite.

    Attributes:
        fit: the result up to there; its parameters are the last good ones.
    """

    fit: Fit


def fit(
    loss_fn: Any,
    params: Any,
    tx: Any,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: Any = 32,
    key: Any = 0,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    eval_data: Any = None,
    validation_split: float | None = None,
    eval_fn: Callable[..., Any] | None = None,
    eval_every: int | str = "epoch",
    eval_batch_size: int = 256,
    log_every: int | None = None,
    model_state: Any = None,
    model_state_reset: str | None = None,
    shuffle: Any = True,
    last_batch: str = "keep",
    accumulate: int | None = None,
    micro_batch_size: int | None = None,
    scale_learning_rate: str | None = None,
    until: Any = (),
    max_seconds: float | None = None,
    callbacks: Any = (),
    loggers: Any = (),
    checkpoint: Any = None,
    resume: str | bool = "auto",
    hyperparams: str | None = None,
    start: Fit | None = None,
    precision: str | None = None,
    max_nonfinite: int | None = 5,
    progress: Any = True,
    steps_per_call: int | str = "auto",
    fast_dev_run: bool = False,
    overfit: int | None = None,
) -> Fit:
    """Train, and return the last good parameters whatever ends it.

    The caller's arrays are never changed nor given away. Ctrl-C, SIGTERM and a time budget end training after
    the present chunk; a second Ctrl-C interrupts at once. Steps, schedules and the history count optimizer
    steps. On CPU the result has the same bits for every `steps_per_call`, and for a run that was stopped and
    resumed.

    Args:
        loss_fn: ``loss_fn(params, batch[, key])`` → loss or (loss, metrics); with `model_state`
            ``loss_fn(params, model_state, batch[, key])`` → (loss, (model_state, metrics)); an adapter
            (`linen_loss`, `nnx_loss`); or a Flax model, with `loss`. Metrics are a dictionary of scalars, or of
            objects with merge and compute; one named ``weight`` weighs its batch in all means. No key is made
            unless the loss takes one.
        params: to start from. None: those of the Flax model, initialised by `key` (linen) or as they are (nnx).
        tx: a jopt or optax transform, or a function of the total number of steps that makes one.
        data: a tree of arrays with the examples on their first axis, kept and shuffled on the device; or an
            iterable of batches: a list or loader, iterated anew every epoch, an iterator, or a function of the
            epoch, prefetched by a thread.
        epochs, steps: how long, counted from the very beginning; exactly one of them.
        batch_size: examples of a step: a number, a schedule of the step, or a range (low, high) to draw from;
            sizes of the last two are rounded to few shapes. For arrays only.
        key: seed or key of shuffles, losses and initial parameters.
        loss, metrics: for a Flax model, as in `linen_loss`.
        eval_data: like `data`, in its own order.
        validation_split: share of `data`, drawn by `key`, to evaluate on instead, in (0, 1).
        eval_fn: what the loss takes but the key, for evaluation. None: the adapter's own, or a loss without key.
        eval_every: "epoch", or a number of steps; the last step is always evaluated.
        eval_batch_size: examples of an evaluation at once.
        log_every: also make a row of the history every so many steps.
        model_state: what the model itself updates, such as batch statistics or a recurrent carry.
        model_state_reset: "epoch" begins every epoch with the first model state.
        shuffle: True, False, or (key, examples) → indices of an epoch.
        last_batch: "keep" runs a batch that is not full at its own shape, with its own mean; "drop" leaves it out.
        accumulate: split every batch into so many micro-batches; the optimizer runs once.
        micro_batch_size: accumulate micro-batches of so many examples, however many a batch has: one program
            for all sizes.
        scale_learning_rate: "linear" or "sqrt" scales updates with the size of the batch over that of step 0.
        until: rules of the history (`jopt.stopping`), or functions of it, that may end training.
        max_seconds: time budget; what a resumed run took before counts.
        callbacks: functions of a `Moment`, called after each record.
        loggers: objects with ``log(row, step)``, or functions (row, step).
        checkpoint: a folder or a `Checkpointer`.
        resume: "auto" goes on from the newest valid checkpoint, True demands one, False demands none.
        hyperparams: "state" or "transform" where both the script and `set_hyperparams` changed a number.
        start: a `Fit` to go on from; `params` is then not used.
        precision: "bf16" or "f16" computes losses in it (parameters stay as they are), the latter with a dynamic
            scale of the loss.
        max_nonfinite: a step whose loss or gradient is not finite changes nothing; so many in a row raise. None:
            no guard.
        progress: True for a display that suits the output, False for none; see `jopt.train.progress`.
        steps_per_call: optimizer steps of one compiled call, or "auto".
        fast_dev_run: one step and one batch of evaluation, without checkpoints.
        overfit: train and evaluate on the first so many batches.

    Raises:
        NonFiniteError: see `max_nonfinite`; it holds the result.
        TypeError, ValueError: arguments that cannot work.
    """
    if (epochs is None) == (steps is None) and not fast_dev_run:
        raise TypeError(
            f"fit: epochs={epochs!r} and steps={steps!r} were given, exactly one of them was expected. "
            f"Pass for example epochs=10."
        )
    key = key_of(key)
    loss_fn = as_loss(loss_fn, loss, metrics)
    states = (model_state, None if start is None else start.model_state)
    stateful = any(state is not None for state in states) or hasattr(loss_fn, "rebuild")
    if fast_dev_run:
        epochs, steps, overfit, checkpoint = None, 1, 1, None
    overfit = None if overfit is None else whole("overfit", overfit)
    eval_batch_size = whole("eval_batch_size", eval_batch_size)
    size = batch_size_of(batch_size, accumulate, micro_batch_size, key)
    feed, evaluation = feeds(
        data, size, eval_data, validation_split, eval_batch_size, shuffle, last_batch, key, overfit, accumulate
    )
    results: list[Fit] = []
    try:
        with contextlib.ExitStack() as opened:
            for each in (feed, evaluation):
                if each is not None:
                    opened.callback(each.close)
            total = whole("steps", steps) if steps is not None else feed.total(whole("epochs", epochs))
            tx = transform_of(tx, total)
            params, model_state = model_of(loss_fn, params, model_state, start, feed, key)
            of = objective(loss_fn, eval_fn, stateful=stateful, precision=precision)
            if evaluation is not None and of.eval_fn is None:
                raise needs_eval_fn("fit", loss_fn)
            check_rules(listed(until), evaluation)
            optimizer, numbers = Optimizer.of(tx)
            job = Job(
                objective=of,
                optimizer=optimizer,
                numbers=numbers,
                key=jax.random.fold_in(key, 1),
                total=total,
                epochs=epochs,
                alarm=None if max_nonfinite is None else whole("max_nonfinite", max_nonfinite),
                accumulates=accumulate is not None or micro_batch_size is not None,
                base_size=None if scale_learning_rate is None else feed.first_size(),
                power=choice("scale_learning_rate", scale_learning_rate, POWERS),
                eval_every=None if eval_every == "epoch" else whole("eval_every", eval_every),
                log_every=None if log_every is None else whole("log_every", log_every),
                reset=choice("model_state_reset", model_state_reset, {None: None, "epoch": model_state}),
                seconds=finite_budget(max_seconds, listed(until)),
                steps_per_call=None if steps_per_call == "auto" else whole("steps_per_call", steps_per_call),
                until=listed(until),
                callbacks=tuple(Fragile(f"the callback {name_of(c)!r}", c) for c in listed(callbacks)),
                loggers=tuple(map(as_logger, listed(loggers))),
            )
            with resume_.session(checkpoint) as checkpoints:
                params, model_state = copy((params, model_state if stateful else {}))
                carry = start_(params, copy(tx.init(params)), model_state, of, feed.batch())
                loop = Loop(job, carry, feed, evaluation, make_progress(progress), checkpoints, tx)
                if start is not None:
                    resume_.go_on(loop, start)
                elif checkpoints is not None:
                    resume_.load(loop, resume, hyperparams)
                return _run(loop, loss_fn, stateful, results)
    except KeyboardInterrupt as interrupt:
        if not results or hasattr(interrupt, "fit"):
            raise
        return results[0]  # training was over, only the closing was interrupted


def _run(loop: Loop, loss_fn: Any, stateful: bool, results: list[Fit]) -> Fit:
    """Train until something ends it; the result is made even then, and added to `results` as soon as it is."""
    job, epochs = loop.job, loop.job.epochs
    config = {"step": loop.step, "total": job.total, "epochs": epochs, "tx": repr(loop.tx)} | loop.live()
    for logger in job.loggers:
        logger.start(config)
    loop.progress.start(job.total, loop.step, epochs, "")
    why, cause = "", None  # why training ended, and what was raised, if anything
    with requests() as asked:
        while not results:
            try:
                why = why or loop.run(asked)
                results.append(_finish(loop, why, loss_fn, stateful))
            except KeyboardInterrupt as interrupt:  # what was trained is not lost to impatience
                why, cause = why or "interrupted by Ctrl-C", cause or interrupt
            except Exception as failure:
                if why:  # the device took the buffers with it
                    raise failure if cause is None else cause from failure
                why, cause = f"stopped by {type(failure).__name__}", failure  # of the data, a rule, the device
    error = _error(loop, why, cause, asked)
    if error is None:
        return results[0]
    error.fit = results[0]  # type: ignore[attr-defined]
    raise error


def _error(loop: Loop, why: str, cause: BaseException | None, asked: Requests) -> BaseException | None:
    """What to raise with the result; a first Ctrl-C raises nothing."""
    if loop.alarmed:
        return NonFiniteError(
            f"fit: {why}; finite losses and gradients were expected. The parameters of error.fit are the last good "
            f"ones. Lower the learning rate, clip gradients, or look at the data of these steps."
        )
    if isinstance(cause, KeyboardInterrupt) and asked.reason is None:
        return None
    if isinstance(cause, Exception):
        cause.add_note("What was trained until then is in the attribute `fit` of this error.")
    return cause


def _finish(loop: Loop, why: str, loss_fn: Any, stateful: bool) -> Fit:
    """Save, close what is open, and gather the result."""
    loop.settle()
    loop.checkpoint()
    best, carry = loop.best, loop.carry
    chosen = carry if best is None else best
    params, state = chosen.params, chosen.state
    result = Fit(
        params=params,
        state=state,
        model_state=chosen.model_state if stateful else None,
        history=loop.history,
        eval_params=eval_params(state, params),
        stopped_because=why,
        step=loop.step,
        epoch=loop.epochs_done(),
        seconds=loop.seconds,
        compile_seconds=loop.compile_seconds,
        skipped=loop.bad[0],
        steps_per_call=loop.pace.steps,
        loss_fn=loss_fn,
        tx=loop.tx,
        resumable=resume_.Resumable(carry, best, loop.job.key, loop.feed.position()),
    )
    for logger in loop.job.loggers:
        logger.close()
    loop.progress.close(f"{why} (step {loop.step}, {loop.seconds:.1f} s)")
    return result
