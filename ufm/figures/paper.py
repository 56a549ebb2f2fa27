"""SHELF of the paper's figures 1 to 10, drawn from the records of the runs that are available.

Figures 1-4 are of CIFAR-10, 5-7 of CIFAR-100, 8 of miniImageNet; 9 and 10 are of the theory. A figure says
which runs are missing. With `data` the figures of training are drawn of another data set in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ufm.figures import _style
from ufm.figures.contrastive import CLASSES, CONTRASTIVE, SCALAR, phi, profiles
from ufm.figures.evolution import evolution
from ufm.figures.grid import MINI, ends, grid
from ufm.figures.records import (
    ACCURACY,
    COLLAPSE,
    EPOCHS,
    LARGEST,
    LOSSES,
    SMALLEST,
    WIDTHS,
    Made,
    Number,
    Record,
    family,
    records,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CLASSES",
    "EPOCHS",
    "FIGURES",
    "LARGEST",
    "LOSSES",
    "MINI",
    "SMALLEST",
    "WIDTHS",
    "Drawing",
    "Kind",
    "Made",
    "Number",
    "Record",
    "draw",
    "records",
]

#: number of missing runs that a figure names; the others are counted
NAMED = 6


class Drawing(NamedTuple):
    """A figure and what it was made of."""

    number: int
    title: str
    figure: Figure
    runs: int
    missing: tuple[str, ...]
    numbers: tuple[Number, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON, without the figure."""
        facts = {"number": self.number, "title": self.title, "runs": self.runs}
        return facts | {"missing": list(self.missing), "numbers": [n._asdict() for n in self.numbers]}


class Kind(NamedTuple):
    """A figure of the paper, and how it is drawn."""

    title: str
    data: str | None  # None: theory
    net: str | None
    draw: Callable[..., Made]


def draw(
    number: int, runs: Sequence[Record] = (), *, data: str | None = None, title: str | None = None
) -> Drawing:
    """A figure of the paper from these runs.

    Args:
        number: a key of `FIGURES`.
        runs: as `records` gives them.
        data: the name of another data set to draw the same of.
        title: in place of the figure's own.

    Raises:
        ValueError: an unknown number; data for a figure of theory.
    """
    if number not in FIGURES:
        known = ", ".join(map(str, FIGURES))
        raise ValueError(f"figure: expected one of {known}, got {number!r}")
    kind = FIGURES[number]
    if kind.data is None:
        if data is not None:
            raise ValueError(
                f"data: expected with a figure of training, got figure {number}, which is theory's"
            )
        with _style.style():
            made: Made = kind.draw()
        return Drawing(number, kind.title, *made)
    of_paper = data in (None, kind.data)
    name = kind.data if data is None else _checks_name(data)
    chosen, left_out = family(runs, name, kind.net if of_paper else None)
    title = f"{kind.title if title is None else title}, {_NAMES.get(name, name)}"
    with _style.style():
        if chosen:
            made = kind.draw(chosen, of_paper)
            notes = [*_compared(made.numbers), *_listed(made.missing), *([left_out] * bool(left_out))]
            _caption(made, f"{title}\n{_settings(chosen)}; {made.runs} runs", notes)
        else:
            net = kind.net if of_paper else None
            made = Made(_nothing(name, net), missing=(f"all of {name}",))
            _caption(made, title, ())
    return Drawing(number, title, *made)


def _checks_name(data: Any) -> str:
    if not isinstance(data, str) or not data:
        raise ValueError(f"data: expected the name of a data set, got {data!r}")
    return data


def _listed(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return [f"missing: {'; '.join(missing[:NAMED])}{more}"]


def _compared(numbers: Iterable[Number]) -> list[str]:
    """Our numbers beside the paper's if it states one or two; more of them are drawn."""
    given = [n for n in numbers if n.paper is not None]
    return [f"{n.name}: {_shown(n.mean)}, paper {n.paper:.4g}" for n in given] if len(given) <= 2 else []


def _settings(runs: Sequence[Record]) -> str:
    c = runs[0].config
    part = "" if c.get("max_train") is None else f", {c['max_train']} images"
    return f"{c['net']} on {c['data']}{part}, preset {c['preset']}, decay {c['weight_decay']:g}"


def _caption(made: Made, title: str, notes: Iterable[str]) -> None:
    """Above the axes the title, below them the comparison with the paper and what is missing."""
    made.figure.suptitle(title, fontsize=8)
    if text := "\n".join(notes):
        made.figure.supxlabel(text, fontsize=6.5)


def _nothing(data: str, net: str | None) -> Figure:
    """The command that trains the runs, in place of a figure."""
    figure = _style.new_figure(_style.WIDTH, 1.6)
    ax = figure.subplots()
    ax.set_axis_off()
    axes = "--loss ce,ls,fl,mse --width ... --epochs ... --out FOLDER"
    command = f"ufm train --data {data} --net {net or 'NET'} {axes}"
    ax.text(0.5, 0.5, f"no run of {data} found\n{command}", ha="center", va="center", color=_style.RED)
    return figure


def _shown(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


# --- the shelf ------------------------------------------------------------------------------------

#: names of the data sets as in the paper
_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "miniimagenet": "miniImageNet"}
_ACCURACIES = functools.partial(grid, "test_accuracy")
_NC1 = functools.partial(grid, "nc1")

#: The shelf: tests, the command line and the README iterate it.
FIGURES: dict[int, Kind] = {
    1: Kind("NC1, NC2, NC3 over training", "cifar10", "wrn50", functools.partial(evolution, COLLAPSE)),
    2: Kind("Accuracies over training", "cifar10", "wrn50", functools.partial(evolution, ACCURACY)),
    3: Kind("Test accuracy (%) over width and epochs", "cifar10", "wrn50", _ACCURACIES),
    4: Kind("NC1 over width and epochs", "cifar10", "wrn50", _NC1),
    5: Kind(
        "NC1, NC2, NC3 and accuracies over training", "cifar100", "wrn50",
        functools.partial(evolution, COLLAPSE | ACCURACY),
    ),
    6: Kind("Test accuracy (%) over width and epochs", "cifar100", "wrn50", _ACCURACIES),
    7: Kind("NC1 over width and epochs", "cifar100", "wrn50", _NC1),
    8: Kind("Test accuracy of the last epoch", "miniimagenet", "wrn18", ends),
    9: Kind(CONTRASTIVE, None, None, phi),
    10: Kind(SCALAR, None, None, profiles),
}  # fmt: skip
