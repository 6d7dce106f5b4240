"""Two tensors that must agree, and where they first do not."""

from collections.abc import Sequence

import torch

HEADS = ("row", "head", "unit")


def same(what: str, got: torch.Tensor, want: torch.Tensor, axes: Sequence[str] = HEADS) -> None:
    """Every bit is equal; a NaN is equal to itself.

    Raises:
        AssertionError: names the first place that is not.
    """
    equal = (got == want) | ((got != got) & (want != want))
    _first(what, equal, got, want, axes)


def near(
    what: str, got: torch.Tensor, want: torch.Tensor, band: torch.Tensor | float,
    axes: Sequence[str] = HEADS,
) -> None:  # fmt: skip
    """No difference is above `band`, equal infinities differ by nothing.

    Raises:
        AssertionError: names the first place that does not agree, also one that is not a number.
    """
    got, want = got.double(), want.double()
    _first(what, (got == want) | ((got - want).abs() <= band), got, want, axes)


def holds(what: str, right: torch.Tensor, axes: Sequence[str] = HEADS) -> None:
    """Every place of a bool tensor is true.

    Raises:
        AssertionError: names the first place that is not.
    """
    _first(what, right, None, None, axes)


def _first(
    what: str, right: torch.Tensor, got: torch.Tensor | None, want: torch.Tensor | None,
    axes: Sequence[str],
) -> None:  # fmt: skip
    if right.all():
        return
    place = (~right).nonzero()[0].tolist()
    names = [*axes, *(f"axis {i}" for i in range(len(axes), len(place)))]
    where = ", ".join(f"{name} {at}" for name, at in zip(names, place, strict=False))
    text = f"{what}: first wrong at {where}"
    if got is not None and want is not None:
        at = tuple(place)
        text += f": got {got[at].item():.9g}, want {want[at].item():.9g}"
    raise AssertionError(f"{text}; {int((~right).sum())} of {right.numel()} are wrong")
