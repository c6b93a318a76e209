"""Errors as objects: where, what was expected, what was found, what to do about it.

Each prints as one sentence made of its fields. Code that needs to know what failed reads a field,
never the sentence.
"""

from collections.abc import Iterable
from typing import Any, Self

__all__ = ["AdamxError", "InvalidType", "InvalidValue"]


class AdamxError(Exception):
    """Bad input, described by fields; raised as `InvalidValue` or `InvalidType`.

    Attributes:
      problem: the whole problem as free text, where `expected` and `found` do not fit it.
      where: the argument, the parameter's path or the file that is wrong; "" if that is clear.
      expected: what it should be.
      found: what it is.
      remedy: what this caller can do.
      argument: the Python argument that answers the error (`template`, say), or None.
      choices: the values of that argument that fit, where several do.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        where: str = "",
        expected: str = "",
        found: object = "",
        remedy: str = "",
        argument: str | None = None,
        choices: Iterable[str] = (),
    ) -> None:
        self.problem, self.where, self.expected = problem, where, expected
        self.found, self.remedy, self.argument = str(found), remedy, argument
        self.choices = tuple(choices)
        super().__init__(self._sentence())  # so that pickles and `args` have it

    def replace(self, **fields: Any) -> Self:
        """A new error of the same class with other fields."""
        names = ("problem", "where", "expected", "found", "remedy", "argument", "choices")
        return type(self)(**({name: getattr(self, name) for name in names} | fields))

    def within(self, where: str) -> Self:
        """The same error, with `where` put before its present `where`."""
        return self.replace(where=f"{where}: {self.where}" if self.where else where)

    def _sentence(self) -> str:
        expected = f"expected {self.expected}" if self.expected else ""
        found = f"found {self.found}" if self.found else ""
        problem = self.problem or ", ".join(filter(None, (expected, found)))
        # A remedy that is a separate sentence begins with a capital.
        separator = ". " if self.remedy[:1].isupper() else "; "
        told = separator.join(filter(None, (problem, self.remedy)))
        return ": ".join(filter(None, (self.where, told)))


class InvalidValue(AdamxError, ValueError):
    """A value out of range, or of another shape or structure."""


class InvalidType(AdamxError, TypeError):
    """A value of the wrong type or kind."""
