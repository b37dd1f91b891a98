"""Training: `fit` and what goes with it.

`fit` resolves arguments, `loop` runs chunks, `program` compiles them out of `step`; `batches` and `streams` feed
them; `objective` and `losses` are what is minimised; `history`, `stopping`, `loggers` and `progress` (with
`status` and `screens`) say how it goes; `checkpoint` and `resume` keep it.
"""
