"""The space of a sweep: which fields of a recipe a trial sets, and what it may set them to.

A field is named by its path: `sophon.suppression_lr`, or `adversary.0.finetune_lrs.0`, where a
number is a place in a list.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform

from protection.names import imported, nearest
from ray_jobs.errors import UsageError
from ray_jobs.recipes import recipe_from, to_plain
from tune_spaces import SPACES

Recipe = TypeVar("Recipe")
Space = Mapping[str, Domain]


def find_space(job: str, name: str, *, fields: Sequence[str] | None = None) -> dict[str, Domain]:
    """Return the space ``name`` of ``job``, or the part of it that ``fields`` are.

    Args:
        job: the command that trials run.
        name: in `tune_spaces.SPACES`, or ``package.module:NAME`` of a dictionary.
        fields: some of the space's; None: all.

    Raises:
        UsageError: there is no such space, or a field is not in it.
    """
    space = _import_space(name) if ":" in name else SPACES[job].get(name)
    if space is None:
        raise UsageError(
            f"space is {name!r}, which names none of {job}; expected one of "
            f"{', '.join(SPACES[job])}, or package.module:NAME{nearest(name, SPACES[job])}"
        )
    for field in fields or ():
        if field not in space:
            raise UsageError(
                f"fields has {field!r}, which space {name} does not have; expected some of "
                f"{', '.join(space)}{nearest(field, space)}"
            )
    return {field: space[field] for field in (space if fields is None else fields)}


def _import_space(name: str) -> dict[str, Domain]:
    expected = "package.module:NAME on the Python path or in the working directory"
    try:
        space = imported(name, field="space", expected=expected)
    except ValueError as error:
        raise UsageError(str(error)) from error
    is_space = isinstance(space, dict) and all(isinstance(d, Domain) for d in space.values())
    if not space or not is_space:
        raise UsageError(
            f"space is {name!r}, which is no search space; expected a dictionary from recipe field "
            "to e.g. tune.loguniform(1e-5, 1e-3)"
        )
    found: dict[str, Domain] = space
    return found


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return ``recipe`` with its fields at the paths ``values`` set to them.

    Raises:
        UsageError: a path names no field, or a value is of another type than its field.
        ValueError: the recipe refuses a value.
    """
    plain = to_plain(recipe)
    for path, value in values.items():
        if path not in (known := list(field_paths(plain))):
            raise UsageError(
                f"{path} is no field of the recipe; expected one of its fields"
                f"{nearest(path, known)}"
            )
        *parents, last = path.split(".")
        holder: Any = plain
        for part in parents:
            holder = holder[_place(holder, part)]
        # Samplers draw numbers of numpy, which YAML does not have.
        holder[_place(holder, last)] = value.item() if hasattr(value, "item") else value
    return recipe_from(plain, type(recipe))


def own_values(recipe: Any, space: Space) -> dict[str, Any] | None:
    """Return the values that ``recipe`` has already; None where ``space`` would not try them."""
    plain = to_plain(recipe)
    values: dict[str, Any] = {}
    for path, domain in space.items():
        value: Any = plain
        for part in path.split("."):
            value = value[_place(value, part)]
        if not _holds(domain, value):
            return None
        values[path] = value
    return values


def _holds(domain: Domain, value: Any) -> bool:
    if isinstance(domain, Categorical):
        return value in domain.categories
    low, high = ends("", domain)
    return isinstance(value, int | float) and bool(low <= value <= high)


def field_paths(plain: Any, prefix: str = "") -> Iterator[str]:
    """Path of everything in nested dictionaries and lists."""
    is_list = isinstance(plain, list)
    for name, value in enumerate(plain) if is_list else plain.items():
        path = f"{prefix}{name}"
        yield path
        if isinstance(value, dict | list):
            yield from field_paths(value, f"{path}.")


def _place(holder: Any, part: str) -> str | int:
    return int(part) if isinstance(holder, list) else part


def check_space(recipe: Any, space: Space) -> None:
    """Refuse a space that reaches where ``recipe`` cannot follow, each field by itself.

    Raises:
        UsageError: a field is none of the recipe's, or the recipe refuses an end of its range.
    """
    for field, domain in space.items():
        for value in ends(field, domain):
            try:
                with_values(recipe, {field: value})
            except ValueError as error:
                raise UsageError(
                    f"space has {field} = {value!r}, which the recipe refuses: {error}"
                ) from error


def ends(field: str, domain: Domain) -> list[Any]:
    """All categories of a choice, or both ends of a range.

    Raises:
        UsageError: ``domain`` has neither.
    """
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer):
        return [domain.lower, domain.upper - 1]
    if isinstance(domain, Float):
        return [domain.lower, domain.upper]
    raise UsageError(
        f"space has {field} = {domain!r}; expected tune.choice, or a range such as tune.uniform, "
        "tune.loguniform or tune.randint"
    )


def is_logarithmic(domain: Domain) -> bool:
    """Whether equal steps in ``domain`` are equal factors."""
    return isinstance(domain.sampler, LogUniform)


def as_text(domain: Domain) -> str:
    """Return ``domain`` as a person reads it."""
    if isinstance(domain, Categorical):
        return f"one of {', '.join(map(str, domain.categories))}"
    low, high = ends("", domain)
    return f"{low:g} to {high:g}{', logarithmic' if is_logarithmic(domain) else ''}"


def as_grid(space: Space) -> dict[str, Any]:
    """Return ``space`` for a search that tries every combination.

    Raises:
        UsageError: a field is a range, which has no end of values.
    """
    for field, domain in space.items():
        if not isinstance(domain, Categorical):
            raise UsageError(
                f"search is grid, but {field} is a range ({as_text(domain)}); expected fields "
                "that are choices, or search: random"
            )
    return {field: tune.grid_search(ends(field, domain)) for field, domain in space.items()}
