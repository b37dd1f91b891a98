"""Adam and its descendants, element by element."""

import jopt
from jopt.wrap.cautious import cautious_gradients, cautious_updates
from zoo.cases import B2, DECAYING, FADE, FALL, LEAVES, MASK, RISE, ROUNDED, Against, Replay, on
from zoo.entry import RATE, Entry, rated

ARRAY = {"elementwise": False}
CAUTIOUS = {
    "elementwise": False,
    "namespace": (("cautious_gradients", cautious_gradients), ("cautious_updates", cautious_updates)),
}
DECAYED = jopt.schedules.linear_schedule(0.05, 0.0, 10)

OPTIMIZERS = {
    "acprop": rated(jopt.acprop),
    "adabelief": rated(jopt.adabelief),
    "adamc": rated(jopt.adamc, zero_gradient=False),
    "adamc_where": rated(lambda rate: jopt.adamc(rate, where="**/kernel"), zero_gradient=False, reads_paths=True),
    "adan": rated(jopt.adan),
    "ademamix": rated(jopt.ademamix),
    "adopt": rated(jopt.adopt),
    "cautious_adamw": rated(jopt.cautious_adamw, zero_gradient=False, **CAUTIOUS),
    "cautious_lion": rated(jopt.cautious_lion, zero_gradient=False, **CAUTIOUS),
    "laprop": rated(jopt.laprop),
    "madgrad": rated(jopt.madgrad),
    "mars": rated(jopt.mars, zero_gradient=False, complex=None, **ARRAY),
    "noisy_sgd": rated(jopt.noisy_sgd, zero_gradient=False, random=True),
    "novograd": rated(jopt.novograd, **ARRAY),
    "optimistic_adam_v2": rated(jopt.optimistic_adam_v2),
    "optimistic_gradient_descent": rated(jopt.optimistic_gradient_descent),
    "radam": rated(jopt.radam),
    "rprop": rated(jopt.rprop),
    "simplified_ademamix": rated(jopt.simplified_ademamix),
    "stable_adamw": rated(jopt.stable_adamw, zero_gradient=False, **ARRAY),
    "yogi": rated(jopt.yogi, zero_gradient=False),  # its first moment does not start at 0
}

RULES = {
    "add_cautious_decay": Entry(lambda: jopt.add_cautious_decay(0.01), zero_gradient=False),
    "scale_by_acprop": Entry(jopt.scale_by_acprop),
    "scale_by_adan": Entry(jopt.scale_by_adan),
    "scale_by_ademamix": Entry(jopt.scale_by_ademamix),
    "scale_by_adopt": Entry(jopt.scale_by_adopt),
    "scale_by_adopt_bounded": Entry(lambda: jopt.scale_by_adopt(nesterov=True, clip_value_fn=2.0)),
    "scale_by_belief": Entry(jopt.scale_by_belief),
    "scale_by_laprop": Entry(jopt.scale_by_laprop),
    "scale_by_madgrad": Entry(lambda: jopt.scale_by_madgrad(RATE)),
    "scale_by_mars": Entry(jopt.scale_by_mars, complex=None, **ARRAY),
    "scale_by_novograd": Entry(jopt.scale_by_novograd, **ARRAY),
    "scale_by_optimistic_gradient": Entry(jopt.scale_by_optimistic_gradient),
    "scale_by_radam": Entry(jopt.scale_by_radam),
    "scale_by_refined_lion": Entry(jopt.scale_by_refined_lion),
    "scale_by_rprop": Entry(lambda: jopt.scale_by_rprop(RATE)),
    "scale_by_simplified_ademamix": Entry(jopt.scale_by_simplified_ademamix),
    "scale_by_smooth_lion": Entry(jopt.scale_by_smooth_lion),
    "scale_by_stable_adam": Entry(jopt.scale_by_stable_adam, **ARRAY),
    "scale_by_yogi": Entry(jopt.scale_by_yogi, zero_gradient=False),
    "scale_with_a_maximum": Entry(lambda: jopt.scale_with_corrected_decay(DECAYED, 0.01, 0.05), zero_gradient=False),
    "scale_with_corrected_decay": Entry(lambda: jopt.scale_with_corrected_decay(DECAYED, 0.01), zero_gradient=False),
}

WRAPPERS = {
    "cautious": Entry(
        lambda: jopt.chain(jopt.cautious(jopt.scale_by_adam()), jopt.scale_by_learning_rate(RATE)), **CAUTIOUS
    ),
}


# Against their transcriptions ---------------------------------------------------------------------

# float32 steps of a madgrad parameter are differences of parameters, x₀ + ... − p, each rounded to 6e-8 of itself.
AVERAGED = (1e-12, 1e-4)
# Whether a coordinate agrees is decided by rounding where u or g is nearly 0: then it is a step more or less.
DECIDED = (1e-12, 1e-4)

ORACLES = [
    Replay("scale_by_belief", slow=True),
    Replay("scale_by_belief", b1=0.8, b2=0.95, eps=1e-8, eps_root=1e-8, nesterov=True),
    Replay("adabelief", learning_rate=FALL, b1=RISE),
    Replay("scale_by_acprop", eps_root=1e-8),
    Replay("acprop", learning_rate=FALL, eps_root=1e-6, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("scale_by_yogi", slow=True),
    Replay("scale_by_yogi", b1=0.8, b2=0.95, eps=1e-4, eps_root=1e-6, initial_accumulator_value=0.1),
    Replay("yogi", learning_rate=FALL),
    Replay("scale_by_radam"),
    Replay("scale_by_radam", b2=0.95, eps=1e-4, eps_root=1e-6, threshold=4.0, nesterov=True, slow=True),
    Replay("scale_by_radam", b2=0.5, slow=True),
    Replay("radam", learning_rate=FALL, b1=RISE),
    Replay("scale_by_optimistic_gradient", slow=True),
    Replay("scale_by_optimistic_gradient", alpha=0.5, beta=FADE),
    Replay("optimistic_gradient_descent", learning_rate=FALL, beta=0.5),
    Replay("optimistic_adam_v2", learning_rate=0.01, tolerance=ROUNDED, slow=True),
    Replay("optimistic_adam_v2", learning_rate=FALL, beta=0.5, nesterov=False),
    Replay("scale_by_adan"),
    Replay("adan", learning_rate=FALL, b2=0.8, weight_decay=FADE, slow=True),
    Replay("adan", learning_rate=0.01, weight_decay=0.1, **on(["kernel"], where=jopt.ndim(2))),
    Replay("scale_by_mars", only=[*LEAVES, "wide"], slow=True),
    Replay("scale_by_mars", gamma=0.05, max_norm=3.0, b1=RISE),
    Replay("mars", only=[*LEAVES, "wide"], learning_rate=0.01, tolerance=ROUNDED, slow=True),
    Replay("mars", learning_rate=FALL, weight_decay=0.1, adam_learning_rate=0.003, adam_weight_decay=FADE),
    Replay("scale_by_adopt"),
    Replay("scale_by_adopt", b1=0.8, b2=0.99, eps=1e-3, nesterov=True, use_clipping=False, slow=True),
    Replay("scale_by_adopt", clip_value_fn=2.0, slow=True),
    Replay("adopt", learning_rate=FALL, b1=RISE),
    Replay("scale_by_laprop"),
    Replay("laprop", learning_rate=FALL, b2=0.5, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("scale_by_novograd", slow=True),
    Replay("scale_by_novograd", b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-4, weight_decay=0.1),
    Replay("novograd", learning_rate=FALL, weight_decay=FADE),
    Replay("scale_by_ademamix", slow=True),
    Replay("scale_by_ademamix", b1=0.8, b2=0.95, b3=RISE, alpha=FALL, eps=1e-4, eps_root=1e-6),
    Replay("ademamix", learning_rate=FALL, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("scale_by_simplified_ademamix", slow=True),
    Replay("scale_by_simplified_ademamix", b1=0.9, alpha=FALL, eps=1e-4, eps_root=1e-6),
    Replay("simplified_ademamix", learning_rate=0.0003, alpha=2.0, weight_decay=FADE),
    Replay("scale_by_rprop", learning_rate=0.01),
    Replay("rprop", learning_rate=0.01, eta_minus=0.7, eta_plus=1.1, min_step_size=1e-3, max_step_size=0.1),
    Replay("scale_by_madgrad", last=True, learning_rate=FALL, tolerance=AVERAGED),
    Replay("madgrad", learning_rate=0.01, momentum=RISE, weight_decay=0.01, eps=1e-4, tolerance=AVERAGED),
    Replay("scale_by_smooth_lion", smooth_beta=3.0),
    Replay("scale_by_refined_lion", b1=0.5),
    Replay("scale_by_stable_adam", only=[*LEAVES, "wide"]),
    Replay("stable_adamw", learning_rate=FALL, b2=0.9, weight_decay=FADE),
    Replay("scale_with_corrected_decay", last=True, learning_rate=FALL, max_learning_rate=0.05, weight_decay=0.1),
    Replay("scale_with_corrected_decay", last=True, learning_rate=RISE, weight_decay=0.01, slow=True),
    Replay("adamc", learning_rate=0.01, slow=True, tolerance=ROUNDED),
    Replay("adamc", learning_rate=FALL, max_learning_rate=0.05, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Replay("add_cautious_decay", weight_decay=0.1, slow=True),
    Replay("add_cautious_decay", weight_decay=FADE, **on(["bias", "gain"], where="bias|gain")),
    Replay("cautious_adamw", learning_rate=0.01, slow=True, tolerance=DECIDED),
    Replay("cautious_adamw", learning_rate=FALL, b1=RISE, weight_decay=0.1, floor=0.5, tolerance=DECIDED),
    Replay("cautious_lion", learning_rate=0.01, weight_decay=0.1, tolerance=DECIDED),
]

SYMBOLS = {
    "scale_by_acprop": {"mu": ("m",), "nu": ("s",)},
    "scale_by_adan": {"m": ("m",), "v": ("v",), "n": ("n",), "g": ("g",)},
    "scale_by_ademamix": {"m1": ("m1",), "m2": ("m2",), "nu": ("v",)},
    "scale_by_adopt": {"mu": ("m",), "nu": ("v",)},
    "scale_by_belief": {"mu": ("m",), "nu": ("s",)},
    "scale_by_laprop": {"mu": ("m",), "nu": ("n",)},
    "scale_by_madgrad": {"grad_sum_sq": ("nu",), "s": ("s",), "x0": ("x0",)},
    "scale_by_mars": {"mu": ("m",), "nu": ("v",), "g": ("g",)},
    "scale_by_novograd": {"mu": ("m",), "nu": ("v",)},
    "scale_by_optimistic_gradient": {"previous_gradient": ("g",)},
    "scale_by_radam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_refined_lion": {"mu": ("m",)},
    "scale_by_rprop": {"ratio": ("ratio",), "sign": ("sign",)},
    "scale_by_simplified_ademamix": {"m": ("m",), "n": ("v",)},
    "scale_by_smooth_lion": {"mu": ("m",)},
    "scale_by_stable_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_yogi": {"mu": ("m",), "nu": ("v",)},
    "scale_with_corrected_decay": {"peak": ("peak",)},
}

RANDOM = {"noisy_sgd": "add_noise has a test of its statistics in test_oracles.py"}


# Against optax ------------------------------------------------------------------------------------

# In float64 optax's ρ cancels 2000 against 2000, and in float32 it has an error of about 0.02 at the defaults.
RHO = {"f64": 1e-9, "f32": 1e-3}

OPTAX = [
    Against("adabelief", 0.01, slow=True, **B2),
    Against("adabelief", DECAYING, 0.8, 0.95, 1e-8, 1e-8, nesterov=True),
    Against("scale_by_belief", 0.8, 0.95, 1e-8, 1e-6, slow=True, bare=True),
    Against("yogi", 0.01, slow=True, **B2),
    Against("yogi", DECAYING, 0.8, 0.95, 1e-4),
    Against("scale_by_yogi", 0.8, 0.95, 1e-4, 1e-6, 0.1, slow=True, bare=True),
    Against("radam", 0.01, 0.9, 0.95, **RHO),
    Against("radam", DECAYING, 0.8, 0.95, 1e-5, 1e-6, 4.5, nesterov=True, slow=True, **RHO),
    Against("scale_by_radam", 0.8, 0.9, slow=True, bare=True, **RHO),
    Against("novograd", 0.01, slow=True),
    Against("novograd", DECAYING, 0.8, 0.9, 1e-4, 1e-5, 0.03),
    Against("scale_by_novograd", 0.8, 0.9, slow=True, bare=True),
    Against("optimistic_gradient_descent", 0.1, slow=True),
    Against("optimistic_gradient_descent", DECAYING, 0.5, 2.0),
    Against("scale_by_optimistic_gradient", 0.5, 2.0, slow=True, bare=True),
    Against("optimistic_adam_v2", 0.01, slow=True, **B2),
    Against("optimistic_adam_v2", DECAYING, alpha=0.5, beta=2.0, b1=0.8, b2=0.95, nesterov=False),
    Against("acprop", 0.01, 0.9, 0.95, 1e-8, 1e-6),
    Against("acprop", DECAYING, 0.8, 0.95, 1e-8, 1e-6, 0.03, MASK, slow=True),
    Against("scale_by_acprop", 0.8, 0.95, 1e-8, 1e-6, slow=True, bare=True),
    Against("adopt", 0.01),
    Against("adopt", DECAYING, 0.8, 0.95, 1e-4, nesterov=True, use_clipping=False, slow=True),
    Against("scale_by_adopt", 0.8, 0.95, slow=True, bare=True),
    Against("ademamix", 0.01, slow=True, **B2),
    Against("ademamix", DECAYING, 0.8, 0.95, 0.99, 2.0, 1e-5, 1e-6, None, 0.03, MASK),
    Against("scale_by_ademamix", 0.8, 0.95, DECAYING, DECAYING, slow=True, bare=True),
    Against("simplified_ademamix", 0.001, slow=True),
    Against("simplified_ademamix", DECAYING, 0.8, 0.9, 2.0, 1e-5, 1e-6, 0.03, MASK),
    Against("scale_by_simplified_ademamix", 0.8, 0.9, DECAYING, slow=True, bare=True),
    Against("scale_by_lion", 0.8, 0.95, mode="smooth", smooth_beta=3.0, bare=True),
    Against("scale_by_lion", 0.8, 0.95, mode="refined", slow=True, bare=True),
]

UNCOMPARED = {
    "adan": "optax weights the changes by 1 - b2; tested in test_moments.py",
    "madgrad": "optax moves parameters without gradients by rounding; tested in test_moments.py",
    "noisy_sgd": "noise of another generator",
    "rprop": "optax's update is that of the step before; tested in test_moments.py",
    "scale_by_adan": "see adan",
    "scale_by_madgrad": "see madgrad",
    "scale_by_rprop": "see rprop",
}

EXCEPTIONS = {
    "adopt": "clip_value_fn=None is the function of optax's default",
    "noisy_sgd": "key has a default; seed is deprecated in optax",
    "scale_by_adopt": "clip_value_fn=None is the function of optax's default",
}
