"""What all contracts share: their laws are methods that pytest finds, and that run without it as well."""

from __future__ import annotations

from typing import Any, Self


class Contract:
    """Laws of one kind of thing, one method ``test_...`` each; a subclass names the thing that is tested."""

    @classmethod
    def of(cls, **attributes: Any) -> type[Self]:
        """Return a contract for one thing, as a subclass with these attributes is; for tables of cases."""
        unknown = [name for name in attributes if not hasattr(cls, name) and name not in cls.__annotations__]
        if unknown:
            raise TypeError(f"{cls.__name__} has no attribute {unknown[0]!r}; see its docstring for those it has")
        return type(cls.__name__, (cls,), attributes)

    @classmethod
    def laws(cls) -> list[str]:
        """Return the names of the laws."""
        return [name for name in dir(cls) if name.startswith("test_")]

    @classmethod
    def check(cls) -> list[str]:
        """Go through all laws, and return their names.

        Raises:
            AssertionError: a law is broken; the first note names it.
        """
        for law in cls.laws():
            try:
                getattr(cls(), law)()
            except Exception as error:
                error.add_note(f"law of {cls.__name__}: {law}")
                raise
        return cls.laws()


def require(holds: bool, law: str) -> None:
    """Raise unless a law holds; not an ``assert`` statement, which Python may be told to leave out.

    Raises:
        AssertionError: it does not.
    """
    if not holds:
        raise AssertionError(law)
