"""What `adamx inspect` says of each variable."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adamx.checkpoint import Checkpoint
from adamx.checkpoint.compare import measure, measure_steps

__all__ = ["describe_variables", "make_rows"]


_SHARES = {"below_eps": "below 10 eps", "zero": "zero"}


def describe_variables(
    checkpoint: Checkpoint, *, is_configured: bool = True
) -> list[dict[str, Any]]:
    """Facts about each variable of the optimizer, and then of the model's other weights.

    Args:
      checkpoint: what was read.
      is_configured: whether its hyperparameters are known, which the size of a step depends on.
    """
    c = checkpoint
    sources = {"m": c.mu, "sqrt_v": c.nu, "sqrt_v_max": c.nu_max, "weight": c.params}
    group_of = {name: group for group in c.groups for name in group.names}
    variables = []
    for name in dict.fromkeys([*c.names, *c.params]):
        held = {key: arrays[name] for key, arrays in sources.items() if name in arrays}
        facts_of = {key: measure(array, "sqrt" in key) for key, array in held.items()}
        first = next(iter(facts_of.values()), {"shape": None, "dtype": None})
        variables.append(
            {
                "name": name,
                "shape": first["shape"],
                "dtype": first["dtype"],
                "dtype_v": facts_of.get("sqrt_v", first)["dtype"],
                **{f"norm_{key}": facts["norm"] for key, facts in facts_of.items()},
                "nonfinite": {key: facts["nonfinite"] for key, facts in facts_of.items()},
            }
        )
        if is_configured and name in c.mu and not np.iscomplexobj(c.mu[name]):
            group = group_of[name]
            variables[-1] |= measure_steps(c.mu[name], c.nu[name], group.config, group.count)
    return variables


def make_rows(variables: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The table of them: a column is left out where no variable has it."""
    titles = {"m": "m", "sqrt_v": "sqrt(v)", "sqrt_v_max": "sqrt(v_max)", "weight": "weight"}
    moments = [k for k in titles if k != "weight" and any(f"norm_{k}" in v for v in variables)]
    rows = []
    for variable in variables:
        dtype, dtype_v = variable["dtype"], variable["dtype_v"]
        row = {
            "variable": variable["name"],
            "shape": "" if variable["shape"] is None else str(variable["shape"]),
            "dtype": (dtype or "") if dtype == dtype_v else f"m {dtype}, v {dtype_v}",
        }
        for key in moments:
            norm = variable.get(f"norm_{key}")
            row[f"norm of {titles[key]}"] = "" if norm is None else f"{float(norm):.6g}"
        step = variable.get("largest_step")
        row["largest step"] = "" if step is None else f"{float(step):.3g}"
        for key, title in _SHARES.items():
            share = variable.get(key)
            row[title] = "" if share is None else f"{100 * share:.3g} %"
        wrong = [f"{count} in {titles[k]}" for k, count in variable["nonfinite"].items() if count]
        rows.append(row | {"NOT FINITE": ", ".join(wrong)})
    # Leave out columns in which every variable is unremarkable.
    silent = {"NOT FINITE", "largest step", *_SHARES.values()}
    silent = {k for k in silent if all(row[k] in ("", "0 %") for row in rows)}
    return [{k: v for k, v in row.items() if k not in silent} for row in rows]
