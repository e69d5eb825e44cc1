"""Which layer has which bits."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bevquant.errors import BevquantError
from bevquant.quant.spec import Precision

_FLOAT = "float"


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that ``pattern`` means: the one it is, or all it matches."""
    if pattern in names and pattern != "*":
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)]


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

    @classmethod
    def of(cls, precision: "Precision | BitPolicy") -> "BitPolicy":
        """Return a policy; a single precision becomes that of every layer."""
        return precision if isinstance(precision, BitPolicy) else cls({"*": precision})

    @classmethod
    def from_json(cls, rules: Mapping[str, str]) -> "BitPolicy":
        """Return the policy of ``{"*": "W4A8", "bbox_head.*": "float"}``.

        Raises:
            BevquantError: a precision that cannot be read or is not supported.
        """
        return cls(
            {
                pattern: None if text == _FLOAT else Precision.parse(text)
                for pattern, text in rules.items()
            }
        )

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
