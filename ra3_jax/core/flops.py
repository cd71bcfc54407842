"""Matmul FLOPs of a traced function, counted on its jaxpr: no compiler, no device.

XLA's own `cost_analysis` counts the body of a scan once and so is useless for a scanned
transformer.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jex_core


def count_dot_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """FLOPs (2 per multiply-add) of all dot products of `fn(*args, **kwargs)`.

    Arguments may be abstract. The count is global: divide by the number of devices yourself.
    Recomputed work (remat) counts, since it is done. Masked attention counts in full; convolutions
    and elementwise work count nothing (a few per cent of a transformer). A `while` counts its body
    once, as its trip count is not known; a `cond` counts its most expensive branch; a Pallas kernel
    counts its own cost estimate, 0 if it has none.
    """
    return jaxpr_dot_flops(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def jaxpr_dot_flops(jaxpr: jex_core.Jaxpr) -> int:
    """`count_dot_flops` of a jaxpr."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: jex_core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return int(estimate.flops) if estimate else 0
    inner = [jaxpr_dot_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(inner, default=0)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # its shapes are those of one shard along the manual axes
        sizes = params["mesh"].shape
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]  # until jax 0.10.1
        return math.prod(sizes[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[jex_core.Jaxpr]:
    """Every jaxpr among an equation's parameters: bodies, branches, called functions."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex_core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jex_core.Jaxpr):
                yield item
