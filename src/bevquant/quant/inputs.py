"""Where what a user passes becomes our types: precisions, policies, schemes, batches.

Every public function takes its arguments through these, so that all of them accept and
refuse the same things, in the same words.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.spec import DEPLOY, SYMMETRIC, THESIS, Precision, Scheme

_ONE = (Tensor, str, bytes, Mapping)
"""What can be iterated over and is nevertheless a single batch."""

_SCHEMES = {"DEPLOY": DEPLOY, "SYMMETRIC": SYMMETRIC, "THESIS": THESIS}


def precisions_of(precisions: Any, verb: str) -> list[Precision]:
    """Return a list of precisions from precisions or texts, or from a single one.

    Raises:
        BevquantError: one of them is no precision, or there is none.
    """
    some = [precisions] if isinstance(precisions, Precision | str) else precisions
    if not isinstance(some, Iterable) or isinstance(some, Mapping):
        raise BevquantError(f"{verb}: precisions={some!r}: give a list such as ['W8A8', 'W4A8']")
    return [Precision.of(each) for each in some]


def scheme_of(scheme: Any, verb: str) -> Scheme:
    """Return a scheme from itself or its name.

    Raises:
        BevquantError: it is neither.
    """
    found = _SCHEMES.get(scheme.upper()) if isinstance(scheme, str) else scheme
    if not isinstance(found, Scheme):
        raise BevquantError(
            f"{verb}: scheme={scheme!r} is no scheme; give bq.DEPLOY, bq.SYMMETRIC, bq.THESIS "
            "or a Scheme of your own"
        )
    return found


def choice_of(value: Any, choices: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        BevquantError: it is not; the message names all, and the nearest.
    """
    known = list(choices)
    if value in known:
        return str(value)
    near = get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BevquantError(f"{what}={value!r} is none of {', '.join(known)}{hint}")


def stream_of(batches: Any, verb: str) -> Iterable[Any]:
    """Return batches for a function that passes over them once: any iterable.

    Raises:
        BevquantError: they are one batch instead of several, or nothing to iterate over.
    """
    if isinstance(batches, _ONE) or not isinstance(batches, Iterable):
        raise BevquantError(
            f"{verb}: batches is one {type(batches).__name__}, not a sequence of batches; "
            "give a list, such as [batch]"
        )
    return batches


def sequence_of(batches: Any, verb: str) -> Sequence[Any]:
    """Return batches for a function that passes over them several times, at least one.

    A sequence is taken as it is, so that it may load a batch when it is indexed. Anything
    else that can be iterated over (a generator, a DataLoader) is listed, and so held in
    memory: a DataLoader that shuffles would give other batches in every pass.

    Raises:
        BevquantError: as :func:`stream_of`, or there is no batch.
    """
    indexed = hasattr(batches, "__getitem__") and hasattr(batches, "__len__")
    if not indexed or isinstance(batches, _ONE):
        batches = list(stream_of(batches, verb))
    if len(batches) == 0:
        raise BevquantError(f"{verb}: there is no batch; give at least one")
    sequence: Sequence[Any] = batches
    return sequence
