"""Optimizers whose state, or everything, is in fewer bits."""

from typing import Any

from jopt.optimizers.classic import adamw, lion
from jopt.partition import chain
from jopt.scalars import ScalarOrSchedule
from jopt.storage import store
from jopt.transform import Transform
from jopt.wrap.rounding import compensate

__all__ = ["adamw_8bit", "adamw_bf16", "lion_8bit"]


def adamw_8bit(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdamW with both moments in 8 bits: 2.03 bytes of state a parameter instead of 8.

    See `adamw` and `store`; with 8 bits for some parameters alone, call `store` with ``where=``.
    """
    tx = adamw(learning_rate, b1, b2, eps, eps_root, None, weight_decay, mask, where=where)
    return store(tx, {"mu": "int8", "nu": "int8"})


def lion_8bit(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """Lion with its momentum in 8 bits: 1.02 bytes of state a parameter instead of 4.

    See `lion` and `store`.
    """
    return store(lion(learning_rate, b1, b2, None, weight_decay, mask, where=where), {"mu": "int8"})


def adamw_bf16(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdamW for bfloat16 parameters: moments in 8 bits, and 8 more bits of each parameter.

    7.03 bytes a parameter in all, its bfloat16 gradient included, instead of 16. See `adamw_8bit` and `compensate`.
    """
    return chain(adamw_8bit(learning_rate, b1, b2, eps, eps_root, weight_decay, mask, where=where), compensate())
