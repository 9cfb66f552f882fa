"""What each of mergekit's methods merges: how many models, whether a base, which parameters.

Named here since a recipe is checked without importing mergekit 0.1.5, which counts models only when a merge begins, and
passes over a parameter that it does not know: a misspelt `density` would merge at the default. A test holds all of it
to mergekit's registry.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Any, Literal, NamedTuple

_TASK_VECTORS = ("int8_mask", "normalize", "rescale", "lambda")
MERGE_PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "arcee_fusion": ((), ()),
    "breadcrumbs": (("weight", "density", "gamma"), _TASK_VECTORS),
    "breadcrumbs_ties": (("weight", "density", "gamma"), _TASK_VECTORS),
    "dare_linear": (("weight", "density"), _TASK_VECTORS),
    "dare_ties": (("weight", "density"), _TASK_VECTORS),
    "della": (("weight", "density", "epsilon"), _TASK_VECTORS),
    "della_linear": (("weight", "density", "epsilon"), _TASK_VECTORS),
    "karcher": ((), ("max_iter", "tol")),
    "linear": (("weight",), ("normalize",)),
    "model_stock": ((), ("filter_wise",)),
    "multislerp": (("weight",), ("normalize_weights", "eps")),
    "nearswap": ((), ("t",)),
    "nuslerp": (("weight",), ("nuslerp_row_wise", "nuslerp_flatten")),
    "passthrough": (("scale",), ()),
    "ram": ((), ("epsilon",)),
    "ramplus_tl": ((), ("r", "alpha", "epsilon")),
    "sce": ((), ("int8_mask", "select_topk")),
    "slerp": ((), ("t",)),
    "task_arithmetic": (("weight", "density"), _TASK_VECTORS),
    "ties": (("weight", "density"), _TASK_VECTORS),
}
"""The parameters of a branch and those of the method."""
MERGE_METHODS = tuple(MERGE_PARAMETERS)
WITHOUT_DEFAULT = ("weight", "t")
"""Must be given wherever they are read."""


class Inputs(NamedTuple):
    """What a method merges. mergekit adds `base_model` to the models wherever it is set, and counts it among them."""

    base: Literal["required", "optional", "ignored"]
    """`ignored`: a base_model is one more model like the others."""
    least: int
    most: int | None
    """Models in all, the base among them; None is no limit."""
    least_beside: int | None = None
    most_beside: int | None = None
    """Models beside the base."""


_PAIR = Inputs("required", 2, 2)
_ON_A_BASE = Inputs("required", 1, None)
_ANY = Inputs("ignored", 1, None)
MERGE_INPUTS: dict[str, Inputs] = {
    **dict.fromkeys(MERGE_METHODS, _ON_A_BASE),
    **dict.fromkeys(("arcee_fusion", "nearswap", "slerp"), _PAIR),
    **dict.fromkeys(("karcher", "linear"), _ANY),
    "model_stock": Inputs("required", 3, None),
    "multislerp": Inputs("optional", 1, None, 1),
    "nuslerp": Inputs("optional", 1, None, 2, 2),
    "passthrough": Inputs("ignored", 1, 1),
}


def check_base_is_written(method: str, fields: Set[str]) -> None:
    """Refuses a method that merges otherwise, or one more model, with a base than without where no `base_model` is
    among the `fields` that were given.

    Raises:
        ValueError: with what to write.
    """
    base = MERGE_INPUTS[method].base
    if base != "required" and "base_model" not in fields:
        does = "merges a base_model like any other model" if base == "ignored" else "merges otherwise with a base_model"
        raise ValueError(f"{method} {does}; write base_model: null, or the model that you mean")


def check_inputs(method: str, models: Collection[str], base: str | None) -> None:
    """Refuses other numbers of models than `method` merges, as mergekit will when it begins.

    Raises:
        ValueError: with what it takes and what it is given.
    """
    takes = MERGE_INPUTS[method]
    if takes.base == "required" and base is None:
        raise ValueError(f"{method} starts from a base and base_model is null; name one")
    given = sorted({*models, *([] if base is None else [base])})
    beside = [name for name in given if name != base]
    for names, least, most, what in (
        (given, takes.least, takes.most, "models" + ("" if base is None else f" with its base_model {base}")),
        (beside, takes.least_beside, takes.most_beside, "models beside a base_model"),
    ):
        if len(names) < (least or 0) or (most is not None and len(names) > most):
            what = what.replace("models", "model", 1) if most == 1 else what
            raise ValueError(
                f"{method} merges {_range(least or 0, most)} {what}, and this recipe gives it {len(names)}: "
                f"{', '.join(names) or 'none'}; change models or base_model"
            )


def check_parameters(
    method: str, models: Mapping[str, Mapping[str, Any]], of_all: Mapping[str, Any], base: str | None
) -> None:
    """Refuses parameters that `method` does not read where they stand, and the lack of those that it cannot do without.

    `models` are the parameters of each model, `of_all` the method's own and the defaults of all models.

    Raises:
        ValueError: naming the first.
    """
    of_branch, of_method = MERGE_PARAMETERS[method]
    places: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [("parameters", of_all, (*of_branch, *of_method))]
    places += [(f"models.{name}.parameters", given, of_branch) for name, given in models.items()]
    for place, given, known in places:
        for parameter in given:
            if parameter not in known:
                raise ValueError(
                    f"{place} has {parameter!r}, which {method} does not read there; it reads "
                    f"{', '.join(known) or 'nothing'}"
                )
    missing = [name for name in WITHOUT_DEFAULT if name in of_method and name not in of_all]
    if missing:
        raise ValueError(f"parameters has no {missing[0]!r}, without which {method} does not merge")
    weighed = set(models)
    if base is not None:
        # A base that is ignored as such is weighed like the others.
        weighed = weighed | {base} if MERGE_INPUTS[method].base == "ignored" else weighed - {base}
    for parameter in WITHOUT_DEFAULT:
        if parameter in of_branch and parameter not in of_all:
            for name in sorted(weighed):
                if parameter not in models.get(name, {}):
                    raise ValueError(
                        f"models.{name}.parameters has no {parameter!r}, without which {method} does not merge; give "
                        f"it there or in parameters"
                    )


def _range(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    return str(least) if least == most else f"{least} to {most}"
