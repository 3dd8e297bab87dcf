"""Checks of a recipe or strategy as a whole: bounds of its fields, and rules across them.

    @dataclass(frozen=True, kw_only=True)
    class TrainRecipe(Checked):
        num_workers: PositiveInt = 1
        min_workers: PositiveInt | None = None

        @rule
        def _worker_range(self) -> Iterator[str]:
            if self.min_workers is not None and self.min_workers > self.num_workers:
                yield f"min_workers: found {self.min_workers}, expected at most num_workers"

`consomme.base.schema.parse` reports what rules say together with all other problems. A rule that
reads a field whose own value is wrong is skipped; the others run. Built in Python, a `Checked`
class raises one `RecipeError` with every problem.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from consomme.base.bounds import bound_problems, hints_of
from consomme.base.errors import RecipeError

C = TypeVar("C")

_IS_RULE = "_consomme_is_rule"


def rule(method: Callable[[C], Iterator[str]]) -> Callable[[C], Iterator[str]]:
    """Mark a method of a `Checked` class that yields one sentence for each problem it finds."""
    setattr(method, _IS_RULE, True)
    return method


class Checked:
    """Base of dataclasses whose bounds and rules hold for every instance.

    Raises:
        RecipeError: A value is out of bounds or breaks a rule; all problems at once.
    """

    def __post_init__(self) -> None:
        """Check bounds and rules."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        found = {
            name: problems
            for name, value in values.items()
            if (problems := list(bound_problems(hints_of(type(self))[name], value, name)))
        }
        problems = [text for texts in found.values() for text in texts]
        problems += rule_problems(type(self), values, found)[1] if found else _run_rules(self)
        if problems:
            raise RecipeError.from_problems(type(self).__name__, problems)


WRONG: Any = object()
"""Stands for a value that cannot be converted to its field's type."""


def rule_problems(
    schema: type[Any], values: Mapping[str, Any], wrong: Collection[str]
) -> tuple[Any, list[str]]:
    """Run the rules that read none of the wrong fields.

    Args:
        schema: A dataclass; one that is not `Checked` has no rules.
        values: Value by field name.
        wrong: Names of fields without a usable value.

    Returns:
        An instance whose wrong fields raise when a rule reads them, so that rules of a recipe that
        contains this one can run, too; and the problems.
    """
    partial = type(schema.__name__, (schema,), {name: _WrongField() for name in wrong})
    instance: Any = object.__new__(partial)
    for name, value in values.items():
        if name not in wrong:
            object.__setattr__(instance, name, value)
    return instance, _run_rules(instance)


def is_usable(value: Any) -> bool:
    """Whether no part of a converted value is `WRONG`."""
    if isinstance(value, Mapping):
        return all(is_usable(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_usable(item) for item in value)
    return value is not WRONG


def raised_problems(check: Callable[[], object]) -> Iterator[str]:
    """Yield what a check that raises `RecipeError` has to say; nothing if it passes."""
    try:
        check()
    except RecipeError as error:
        yield from error.problems or (str(error),)


def _run_rules(instance: Any) -> list[str]:
    classes = reversed(type(instance).__mro__)
    members = {name: member for cls in classes for name, member in vars(cls).items()}
    problems: list[str] = []
    for name, member in members.items():
        if not getattr(member, _IS_RULE, False):
            continue
        try:
            for problem in getattr(instance, name)():
                problems.append(problem)
        except _WrongFieldError:
            continue
    return problems


class _WrongFieldError(Exception):
    """A rule read a field that has no usable value."""


class _WrongField:
    """Stands for the value of a field that is wrong."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        raise _WrongFieldError
