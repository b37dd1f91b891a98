"""`jopt list` and `jopt doctor`: what there is, and what it runs on."""

import inspect
import platform
import shutil
import sys
import textwrap
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

import jopt
from jopt import optimizers, schedules
from jopt.transform import Transform

# Where a factory is defined says what it is.
KINDS = {
    "jopt.optimizers": "Optimizers",
    "jopt.rules": "Rules",
    "jopt.clip": "Clipping and regularisation",
    "jopt.regularize": "Clipping and regularisation",
    "jopt.plateau": "Wrappers and combinators",
    "jopt.wrap": "Wrappers and combinators",
    "jopt.partition": "Wrappers and combinators",
    "jopt.transform": "Wrappers and combinators",
}
EXTRAS = {
    "flax": "flax",
    "scikit-learn": "data",
    "matplotlib": "plot",
    "tensorboardX": "tb",
    "orbax-checkpoint": "orbax",
}


def names() -> dict[str, dict[str, str]]:
    """Every public factory by kind: name → the first line of its docstring."""
    kinds: dict[str, dict[str, str]] = {kind: {} for kind in KINDS.values()}
    for name, factory in sorted(vars(jopt).items()):
        if not inspect.isfunction(factory) or inspect.signature(factory).return_annotation is not Transform:
            continue
        module = next((m for m in KINDS if (factory.__module__ + ".").startswith(m + ".")), None)
        if name in optimizers.__all__:
            kinds["Optimizers"][name] = _first_line(factory)
        elif module is not None:
            kinds[KINDS[module]][name] = _first_line(factory)
    kinds["Schedules"] = {n: _first_line(getattr(schedules, n)) for n in sorted(schedules.__all__) if n != "Schedule"}
    return kinds


def show_names() -> int:
    """Print `names`: in a terminal wrapped to its width, else a line each (for grep)."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for kind, found in names().items():
        print(f"{kind} ({len(found)}, in {'jopt.schedules' if kind == 'Schedules' else 'jopt'})")
        width = max(map(len, found)) + 4
        for name, line in found.items():
            first, *rest = textwrap.wrap(line, max(columns - width, 30))
            print(f"  {name}".ljust(width) + first)
            for more in rest:
                print(" " * width + more)
        print()
    return 0


def show_installation() -> int:
    """Print versions, devices and the settings of JAX that change results."""
    lines = [("python", platform.python_version()), ("jopt", jopt.__version__)]
    lines += [(name, metadata.version(name)) for name in ("jax", "jaxlib", "optax", "numpy")]
    lines += [(name, _version_or_install_line(name, extra)) for name, extra in EXTRAS.items()]
    lines += [("backend", jax.default_backend())]
    for kind in sorted({device.device_kind for device in jax.devices()}):
        lines.append(("devices", f"{sum(d.device_kind == kind for d in jax.devices())} × {kind}"))
    lines += [
        ("processes", str(jax.process_count())),
        ("x64", "on" if jnp.result_type(float) == jnp.float64 else "off"),
        ("matmul precision", jax.config.values["jax_default_matmul_precision"] or "default of the backend"),
    ]
    for name, value in lines:
        print(f"{name.ljust(18)}{value}")
    return 0


def _first_line(factory: Any) -> str:
    return (inspect.getdoc(factory) or "").split("\n", 1)[0]


def _version_or_install_line(name: str, extra: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f'not installed; pip install "jopt[{extra}]"'
