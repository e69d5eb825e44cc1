"""Which layer has which bits."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bevquant.errors import BevquantError
from bevquant.quant.spec import Precision

_FLOAT = "float"


@dataclass(frozen=True)
class BitPolicy:
    """Ordered rules; the last one that matches a layer's name decides.

    ``BitPolicy({"*": W4A8, "bbox_head.*": W8A8, "*.stem": None})`` gives every layer 4-bit
    weights, those of the head 8, and leaves the stems float.

    Attributes:
        rules: pattern (``*``, ``?``, ``[...]``; ``*`` crosses dots) -> precision, ``None``
            for float. A layer that no rule matches stays float. A pattern that is itself the
            name of a layer means that layer alone; ``*`` means every layer.
    """

    rules: Mapping[str, Precision | None]

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Mapping):
            raise BevquantError(
                f"policy: {self.rules!r} is none; give rules such as {{'*': 'W4A8', 'head': None}}"
            )
        rules = {_pattern(key): _precision(value) for key, value in self.rules.items()}
        object.__setattr__(self, "rules", rules)

    @classmethod
    def of(cls, policy: Any) -> "BitPolicy":
        """Return a policy from itself, from rules, or from one precision for every layer.

        Precisions may be texts: ``"W8A8"``, ``{"*": "W4A8", "head.*": "float"}``.

        Raises:
            BevquantError: it is nothing of that.
        """
        if isinstance(policy, BitPolicy):
            return policy
        return cls(policy if isinstance(policy, Mapping) else {"*": policy})

    @classmethod
    def from_json(cls, rules: Mapping[str, str]) -> "BitPolicy":
        """Return the policy of ``{"*": "W4A8", "bbox_head.*": "float"}``.

        Raises:
            BevquantError: a precision that cannot be read or is not supported.
        """
        return cls(rules)  # type: ignore[arg-type]  # texts become precisions there

    def to_json(self) -> dict[str, str]:
        """Return what :meth:`from_json` reads."""
        return {pattern: str(precision or _FLOAT) for pattern, precision in self.rules.items()}

    def assign(self, names: Iterable[str]) -> dict[str, Precision | None]:
        """Return the precision of each layer.

        Raises:
            BevquantError: a rule that matches no layer.
        """
        names = list(names)
        assigned: dict[str, Precision | None] = dict.fromkeys(names)
        for pattern, precision in self.rules.items():
            matches = matching(pattern, names)
            if not matches:
                near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise BevquantError(f"precision: rule {pattern!r} matches no layer{hint}")
            assigned.update(dict.fromkeys(matches, precision))
        return assigned


PolicyLike = BitPolicy | Precision | str | Mapping[str, Precision | str | None] | None
"""What :meth:`BitPolicy.of` takes."""


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the layers that ``pattern`` names: the one that is called so, else all that match.

    A name may itself hold what means something in a pattern: ``h.x[0]``.
    """
    names = list(names)
    if pattern != "*" and pattern in names:
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)]


def _pattern(key: Any) -> str:
    if not isinstance(key, str):
        raise BevquantError(f"policy: {key!r} is no layer name or pattern; give text")
    return key


def _precision(value: Any) -> Precision | None:
    return None if value is None or value == _FLOAT else Precision.of(value)
