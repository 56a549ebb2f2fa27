"""SHELF of figures: the paper's, 1 to 10, from the records of whatever runs there are.

1-4 are of CIFAR-10, 5-7 of CIFAR-100, 8 of miniImageNet; 9 and 10 are theory's. A figure says which runs are
missing. With `data` the figures of training are drawn of another data set, in the same way.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ufm import plotting
from ufm.deep._measure import PARTS
from ufm.deep._run import History, Run, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ufm.deep._bridge import Comparison

LOSSES = {
    "ce": ("CE", plotting.BLUE, "-", "o"),
    "ls": ("LS", plotting.GREEN, "--", "^"),
    "fl": ("FL", plotting.RED, "-.", "s"),
    "mse": ("MSE", plotting.PINK, ":", "D"),
}
#: the paper's grid
WIDTHS, EPOCHS = (0.25, 0.5, 1.0, 2.0), (100, 200, 400, 800)
SMALLEST, LARGEST = (WIDTHS[0], EPOCHS[0]), (WIDTHS[-1], EPOCHS[-1])
#: the classes of figures 9 and 10
CLASSES = 10
#: missing runs that are named in a figure; the others are counted
NAMED = 6

_COLLAPSE = {"nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
_ACCURACY = {f"{part}_accuracy": f"{part} accuracy" for part in PARTS}
#: what may differ between the runs of one figure
_OWN = (
    *("loss", "hyperparameters", "width", "parameters", "features"),
    *("epochs", "metrics_every", "seed"),
)

Cell = tuple[float, int]  # width, epochs


class Record(NamedTuple):
    """What a figure needs of a run."""

    source: Path
    config: dict[str, Any]
    status: str
    history: History

    @property
    def cell(self) -> Cell:
        """(width, epochs)."""
        return self.config["width"], self.config["epochs"]

    @property
    def completed(self) -> bool:
        """Whether all epochs are done."""
        return self.status == Status.COMPLETED.value


class Number(NamedTuple):
    """A number of a figure beside the paper's."""

    name: str
    mean: float | None  # over the seeds; None: the runs are missing
    spread: float | None  # their standard deviation; None for fewer than two
    seeds: int
    paper: float | None  # None: it gives none


class Drawing(NamedTuple):
    """A figure and what it was made of."""

    number: int
    title: str
    figure: Figure
    runs: int
    missing: tuple[str, ...]
    numbers: tuple[Number, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the figure."""
        facts = {"number": self.number, "title": self.title, "runs": self.runs}
        return facts | {"missing": list(self.missing), "numbers": [n._asdict() for n in self.numbers]}


class Made(NamedTuple):
    """What a function that draws one gives."""

    figure: Figure
    runs: int = 0
    missing: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()


class Kind(NamedTuple):
    """A figure of the paper, and how it is drawn."""

    title: str
    data: str | None  # None: theory
    net: str | None
    draw: Callable[..., Made]


# --- records --------------------------------------------------------------------------------------


def records(*places: str | Path) -> list[Record]:
    """The records of all runs in these folders, whatever their names; a file given is one record.

    Raises:
        ValueError: a place that does not exist, or a file that is no record of a run.
    """
    found: list[Record] = []
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(
                f"runs: expected a folder with records of runs, got no such place {str(place)!r}"
            )
        files = [place] if place.is_file() else sorted(place.rglob("*.json"))
        read = [record for record in map(_read, files) if record is not None]
        if place.is_file() and not read:
            raise ValueError(f"runs: expected the record of a run, got {str(place)!r}, which is none")
        found += read
    return found


def _read(path: Path) -> Record | None:
    try:
        tree = json.loads(path.read_bytes())
        if not {"config", "history", "status"} <= set(tree):
            return None
        rows = (np.array(tree["history"][name], dtype=np.float64) for name in History._fields)
        history = History(*rows)
        config = tree["config"]
        float(config["width"]), int(config["epochs"]), int(config["seed"]), config["net"], config["loss"]
        return Record(path, dict(config), str(tree["status"]), history)
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError):
        return None


def _family(runs: Sequence[Record], data: str, net: str | None) -> tuple[list[Record], str]:
    """The largest set of runs that differ in loss, width, epochs and seed alone; the paper's net first.

    And in words what is left out.
    """
    own = [run for run in runs if _is_of(run.config["data"], data) and run.config["loss"] in LOSSES]
    pool = [run for run in own if run.config["net"] == net] or own
    groups: dict[str, list[Record]] = {}
    for run in pool:
        shared = {name: value for name, value in run.config.items() if name not in _OWN}
        groups.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(run)
    if not groups:
        return [], ""
    chosen = max(groups.values(), key=lambda g: (sum(run.completed for run in g), len(g)))
    rest = len(own) - len(chosen)
    return _once(chosen), f"{rest} runs of other settings are not drawn" if rest else ""


def _is_of(name: str, data: str) -> bool:
    """Whether a run's data are this set, or a version of it by name: cifar10-jpeg of cifar10."""
    return name == data or name.startswith(f"{data}-")


def _once(runs: Iterable[Record]) -> list[Record]:
    """One run for a loss, cell and seed: that which has come furthest."""
    best: dict[Any, Record] = {}
    for run in runs:
        key = (run.config["loss"], *run.cell, run.config["seed"])
        if key not in best or run.history.epoch.size > best[key].history.epoch.size:
            best[key] = run
    return list(best.values())


def _of(runs: Iterable[Record], loss: str, cell: Cell, completed: bool = True) -> list[Record]:
    mine = [run for run in runs if run.config["loss"] == loss and run.cell == cell and run.history.epoch.size]
    return [run for run in mine if run.completed] if completed else mine


def _number(name: str, values: Sequence[float], paper: float | None = None) -> Number:
    good = [v for v in values if math.isfinite(v)]
    spread = float(np.std(good, ddof=1)) if len(good) > 1 else None
    return Number(name, float(np.mean(good)) if good else None, spread, len(good), paper)


def _last(runs: Iterable[Record], name: str) -> list[float]:
    return [float(getattr(run.history, name)[-1]) for run in runs]


# --- drawing --------------------------------------------------------------------------------------


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
        with plotting.style():
            made: Made = kind.draw()
        return Drawing(number, kind.title, *made)
    of_paper = data in (None, kind.data)
    name = kind.data if data is None else _checks_name(data)
    chosen, left_out = _family(runs, name, kind.net if of_paper else None)
    own = kind.title if title is None else title
    title = own if of_paper else f"{own}, of {name}"
    with plotting.style():
        if chosen:
            made = kind.draw(chosen, of_paper)
            notes = [*_compared(made.numbers), *_listed(made.missing), *([left_out] * bool(left_out))]
            _caption(made, f"{title} ({_settings(chosen)}; {made.runs} runs)", notes)
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
    """Ours beside the paper's, where it gives a few; more are drawn."""
    given = [n for n in numbers if n.paper is not None]
    return [f"{n.name}: {_shown(n.mean)}, paper {n.paper:.4g}" for n in given] if len(given) <= 2 else []


def _settings(runs: Sequence[Record]) -> str:
    c = runs[0].config
    part = "" if c.get("max_train") is None else f", {c['max_train']} images"
    return f"{c['net']} on {c['data']}{part}, preset {c['preset']}, decay {c['weight_decay']:g}"


def _caption(made: Made, title: str, notes: Iterable[str]) -> None:
    """Above what it is of, below how it compares and what is missing."""
    made.figure.suptitle(title, fontsize=8)
    if text := "\n".join(notes):
        made.figure.supxlabel(text, fontsize=6.5)


def _nothing(data: str, net: str | None) -> Figure:
    """What to run, in place of a figure."""
    figure = plotting.new_figure(plotting.WIDTH, 1.6)
    ax = figure.subplots()
    ax.set_axis_off()
    axes = "--loss ce,ls,fl,mse --width ... --epochs ... --out FOLDER"
    command = f"ufm train --data {data} --net {net or 'NET'} {axes}"
    ax.text(0.5, 0.5, f"no run of {data} found\n{command}", ha="center", va="center", color=plotting.RED)
    return figure


def plot_runs(runs: Iterable[Run]) -> Figure:
    """NC1, NC2, NC3 and the accuracies of runs that are at hand, a line a loss: figure 5 of one's own.

    Raises:
        ValueError: no runs.
    """
    given = [Record(Path(), r.config.to_dict(), r.status.value, r.history) for r in runs]
    if not given:
        raise ValueError("runs: expected at least one, got none")
    return draw(5, given, data=given[0].config["data"], title="Neural collapse and accuracies").figure


# --- evolution over the epochs: figures 1, 2 and 5 ------------------------------------------------


def _evolution(names: dict[str, str], runs: list[Record], of_paper: bool) -> Made:
    """Each quantity against the epochs, a line a loss: mean over the seeds, and between the extreme ones."""
    cell = _fullest(runs)
    rows = len(names) // 3
    figure = plotting.new_figure(plotting.WIDTH, 0.5 + 2.0 * rows)
    axes = np.ravel(figure.subplots(rows, 3, squeeze=False))
    missing, numbers = [], []
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        ax.set(xlabel="epoch", ylabel=label, yscale="log" if name in _COLLAPSE else "linear")
    for loss, (title, *_) in LOSSES.items():
        own = _of(runs, loss, cell, completed=False)
        if not own:
            missing.append(f"{title} at {_words(cell)}")
            continue
        for ax, name in zip(axes, names, strict=True):
            _line(ax, own, name, loss)
        for name, label in names.items():
            paper = 1.0 if of_paper and name == "train_accuracy" else None
            numbers.append(_number(f"{label}, {title}, {_words(cell)}", _last(own, name), paper))
    axes[0].legend(title=_words(cell), title_fontsize=7)
    used = sum(run.cell == cell and bool(run.history.epoch.size) for run in runs)
    return Made(figure, used, tuple(missing), tuple(numbers))


def _fullest(runs: Iterable[Record]) -> Cell:
    """Width and epochs with most losses, then most runs; of equals the largest."""
    runs = list(runs)

    def rank(cell: Cell) -> tuple[int, int, int, float]:
        own = [run for run in runs if run.cell == cell and run.history.epoch.size]
        return len({run.config["loss"] for run in own}), len(own), cell[1], cell[0]

    return max((run.cell for run in runs), key=rank)


def _line(ax: Axes, runs: Sequence[Record], name: str, loss: str) -> None:
    title, colour, dashes, marker = LOSSES[loss]
    epochs = sorted({int(e) for run in runs for e in run.history.epoch})
    table = np.full((len(runs), len(epochs)), np.nan)
    for row, run in zip(table, runs, strict=True):
        values = getattr(run.history, name)
        row[np.searchsorted(epochs, run.history.epoch)] = np.where(np.isfinite(values), values, np.nan)
    known = ~np.isnan(table).all(axis=0)
    x, table = np.array(epochs)[known], table[:, known]
    mark = marker if len(x) <= 2 else None
    ax.plot(x, np.nanmean(table, axis=0), color=colour, ls=dashes, marker=mark, label=title)
    if len(runs) > 1:
        ax.fill_between(x, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=colour, alpha=0.2, lw=0)


# --- width x epochs: figures 3, 4, 6 and 7 --------------------------------------------------------


def _grid(name: str, runs: list[Record], of_paper: bool) -> Made:
    """A map for each loss: mean over the seeds, with their standard deviation; a cross where runs miss."""
    from matplotlib.colors import LogNorm, Normalize

    widths, epochs = _axes(runs)
    cells = [(w, e) for w in widths for e in epochs]
    values = {
        (loss, cell): _number(f"{label[0]}, {_words(cell)}", _last(_of(runs, loss, cell), name))
        for loss, label in LOSSES.items()
        for cell in cells
    }
    missing = [number.name for number in values.values() if number.mean is None]
    known = [number.mean for number in values.values() if number.mean is not None]
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    log = name in _COLLAPSE and low > 0
    norm = LogNorm(low, max(high, 1.001 * low)) if log else Normalize(low, max(high, low + 1e-9))
    figure = plotting.new_figure(plotting.WIDTH, 1.6 + 0.6 * len(widths))
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for ax, loss in zip(axes.flat, LOSSES, strict=True):
        _map(ax, np.array([[values[loss, (w, e)].mean for e in epochs] for w in widths], float), norm)
        for i, j in np.ndindex(len(widths), len(epochs)):
            _entry(ax, values[loss, (widths[i], epochs[j])], (j, i), norm, log)
        ax.set_title(LOSSES[loss][0])
        ax.set_xticks(range(len(epochs)), [str(e) for e in epochs])
        ax.set_yticks(range(len(widths)), [f"{w:g}" for w in widths])
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    for ax in axes[:, 0]:
        ax.set_ylabel("width")
    found = _extremes(name, values, of_paper)
    used = sum(number.seeds for number in values.values())
    return Made(figure, used, tuple(missing), (*values.values(), *found))


def _axes(runs: Iterable[Record]) -> tuple[list[float], list[int]]:
    """The paper's grid where the runs lie in it, else their own."""
    widths, epochs = ({run.cell[i] for run in runs} for i in (0, 1))
    inside = widths <= set(WIDTHS) and epochs <= set(EPOCHS)
    if inside:
        return list(WIDTHS), list(EPOCHS)
    return sorted(widths), sorted(int(e) for e in epochs)


def _map(ax: Axes, table: np.ndarray, norm: Any) -> None:
    ax.imshow(np.ma.masked_invalid(table), cmap="viridis", norm=norm, aspect="auto")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _entry(ax: Axes, number: Number, at: tuple[int, int], norm: Any, log: bool) -> None:
    how: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6}
    if number.mean is None:
        ax.text(*at, "x", color=plotting.RED, **how)
        return
    text = f"{number.mean:.1e}" if log else f"{100 * number.mean:.2f}"
    if number.spread is not None:
        text += f"\n± {number.spread:.0e}" if log else f"\n± {100 * number.spread:.2f}"
    ax.text(*at, text, color="white" if norm(number.mean) < 0.6 else "black", **how)


def _extremes(name: str, values: dict[tuple[str, Cell], Number], of_paper: bool) -> list[Number]:
    """What the paper says of its smallest and its largest configuration."""
    ends = {}
    for cell in (SMALLEST, LARGEST):
        means = [values[loss, cell].mean for loss in LOSSES if (loss, cell) in values]
        known = [mean for mean in means if mean is not None]
        ends[cell] = known if len(known) == len(LOSSES) else []
    if name == "nc1":
        few, many = ends[SMALLEST], ends[LARGEST]
        ratio = [float(np.mean(few) / np.mean(many))] if few and many else []
        text = f"NC1 at {_words(SMALLEST)} over NC1 at {_words(LARGEST)}"
        return [_number(text, ratio, 1000.0 if of_paper else None)]
    paper = {SMALLEST: 0.01037, LARGEST: 0.0036}
    return [
        _number(
            f"largest difference between losses, {_words(cell)}",
            [max(own) - min(own)] if own else [],
            paper[cell] if of_paper else None,
        )
        for cell, own in ends.items()
    ]


def _words(cell: Cell) -> str:
    return f"width {cell[0]:g}, {cell[1]} epochs"


def _shown(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


# --- miniImageNet: figure 8 -----------------------------------------------------------------------

#: last-iteration test accuracies that the paper gives
MINI = {
    SMALLEST: {"ce": 0.7195, "mse": 0.6915, "fl": 0.7020, "ls": 0.7040},
    LARGEST: {"ce": 0.7930, "mse": 0.7962, "fl": 0.7932, "ls": 0.8020},
}


def _ends(runs: list[Record], of_paper: bool) -> Made:
    """Test accuracy of the last epoch at the smallest and largest configuration, beside the paper's."""
    cells = list(MINI) if of_paper else sorted({min(run.cell for run in runs), max(run.cell for run in runs)})
    figure = plotting.new_figure(plotting.WIDTH, 2.6)
    axes = np.ravel(figure.subplots(1, len(cells), sharey=True, squeeze=False))
    missing, numbers = [], []
    for ax, cell in zip(axes, cells, strict=True):
        for x, (loss, (title, colour, _, marker)) in enumerate(LOSSES.items()):
            paper = MINI[cell][loss] if of_paper else None
            name = f"{title}, {_words(cell)}"
            number = _number(name, _last(_of(runs, loss, cell), "test_accuracy"), paper)
            numbers.append(number)
            if number.mean is None:
                missing.append(name)
            else:
                ax.errorbar(x, number.mean, number.spread, color=colour, marker=marker, capsize=3, ls="none")
            if paper is not None:
                ax.plot(x, paper, "_", color=plotting.BLACK, ms=14, label="paper" if x == 0 else None)
        ax.set_xticks(range(len(LOSSES)), [label[0] for label in LOSSES.values()])
        ax.set(title=_words(cell), xlim=(-0.5, len(LOSSES) - 0.5))
    axes[0].set_ylabel("test accuracy, last epoch")
    if of_paper:
        axes[0].legend()
    return Made(figure, sum(n.seeds for n in numbers), tuple(missing), tuple(numbers))


# --- theory: figures 9 and 10 ---------------------------------------------------------------------


def _phi() -> Made:
    """phi(t) of Definition 1, t = sum_{j != k} (z_j - z_k)."""
    from ufm import theory

    figure = plotting.new_figure(plotting.WIDTH, 2.6)
    axes = figure.subplots(1, 2)
    for loss, (title, colour, dashes, _) in LOSSES.items():
        ax = axes[int(loss == "mse")]
        found = theory.contrastive_property(loss, CLASSES)
        t = np.linspace(-300, 60, 241) if loss == "mse" else np.linspace(-120, 30, 241)
        word = "contrastive" if found.holds else "contrastive up to a shift of the logits"
        ax.plot(t, found.phi(t), color=colour, ls=dashes, label=f"{title}: {word}")
    for ax in axes:
        ax.axvline(0, color="0.7", lw=0.8)
        ax.set(xlabel=r"$t = \sum_{j \neq k} (z_j - z_k)$", ylabel=r"$\phi(t)$", ylim=(0, None))
        ax.legend()
    figure.suptitle(f"{FIGURES[9].title}, K = {CLASSES}", fontsize=8)
    return Made(figure)


def _profiles() -> Made:
    """l(a) + C a around the threshold, with its minimiser in closed form."""
    from ufm import theory
    from ufm._problem import Problem

    figure = plotting.new_figure(plotting.WIDTH, 2.3)
    axes = figure.subplots(1, len(LOSSES))
    for ax, (loss, (title, *_)) in zip(axes, LOSSES.items(), strict=True):
        profile = theory.scalar_profile(loss, CLASSES)
        prob = Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1)
        threshold = theory.threshold(prob).C_thr
        a = np.linspace(-2, 24 if loss == "mse" else 8, 161)
        styles = ((0.25, plotting.BLUE, "-"), (1.0, plotting.GREEN, "--"), (1.5, plotting.RED, ":"))
        for factor, colour, dashes in styles:
            c = factor * threshold / (CLASSES - 1)
            best = theory.global_optimum(Problem.balanced(loss, K=CLASSES, d=CLASSES, n=1, lam_W=c, lam_H=c))
            curve = np.asarray(profile.value(a)) + factor * threshold * np.abs(a)
            ax.plot(a, curve, color=colour, ls=dashes, label=rf"${factor:g}\,C_{{thr}}$")
            ax.plot(best.margin, best.objective, "o", color=colour)
        ax.set(title=f"{title}, $C_{{thr}}$ = {threshold:.3g}", xlabel="margin $a$")
    axes[0].set_ylabel(r"$\ell(a) + C\,|a|$")
    axes[0].legend()
    figure.suptitle(f"{FIGURES[10].title}, K = {CLASSES}; dots: the minimum in closed form", fontsize=8)
    return Made(figure)


# --- the bridge -----------------------------------------------------------------------------------


def plot_comparison(found: Comparison) -> Figure:
    """Cosines of the class means, of classifier and class means, and margins with the UFM's optimum."""
    K = len(found.angles)
    with plotting.style():
        figure = plotting.new_figure(plotting.WIDTH, 2.4)
        axes = figure.subplots(1, 3)
        panels = (("class means", found.angles), ("rows of $W$ and class means", found.dual_angles))
        for ax, (title, cosines) in zip(axes, panels, strict=False):
            image = ax.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            off = cosines[~np.eye(K, dtype=bool)]
            ax.set_title(f"cosines: {title}")
            text = f"off the diagonal {off.mean():.3f} ± {off.std():.3f}; ETF {-1 / (K - 1):.3f}"
            ax.set_xlabel(text, fontsize=6)
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes[1], shrink=0.8, pad=0.02).outline.set_visible(False)
        axes[2].hist(found.margins, bins=40, color=plotting.SKY, label="samples")
        axes[2].axvline(found.margin, color=plotting.BLUE, ls="--", label=f"mean {found.margin:.3g}")
        if found.optimal_margin is not None:
            label = f"UFM's optimum {found.optimal_margin:.3g}"
            axes[2].axvline(found.optimal_margin, color=plotting.RED, label=label)
        axes[2].set(title="margins", xlabel="margin $a$", yticks=())
        axes[2].legend()
        above = "" if found.gap is None else f"objective {found.gap:.2%} above the UFM's minimum, "
        penalties = rf"$\lambda_W$ = {found.lam_W:.2g}, $\lambda_H$ = {found.lam_H:.2g}"
        figure.suptitle(f"{above}{penalties}", fontsize=8)
    return figure


# --- the shelf ------------------------------------------------------------------------------------

_ACCURACIES = functools.partial(_grid, "test_accuracy")
_NC1 = functools.partial(_grid, "nc1")

#: The shelf: tests, the command line and the README iterate it.
FIGURES: dict[int, Kind] = {
    1: Kind("NC1, NC2, NC3 over training", "cifar10", "wrn50", functools.partial(_evolution, _COLLAPSE)),
    2: Kind("Accuracies over training", "cifar10", "wrn50", functools.partial(_evolution, _ACCURACY)),
    3: Kind("Test accuracy (%) over width and epochs", "cifar10", "wrn50", _ACCURACIES),
    4: Kind("NC1 over width and epochs", "cifar10", "wrn50", _NC1),
    5: Kind(
        "NC1, NC2, NC3 and accuracies over training, CIFAR-100", "cifar100", "wrn50",
        functools.partial(_evolution, _COLLAPSE | _ACCURACY),
    ),
    6: Kind("Test accuracy (%) over width and epochs, CIFAR-100", "cifar100", "wrn50", _ACCURACIES),
    7: Kind("NC1 over width and epochs, CIFAR-100", "cifar100", "wrn50", _NC1),
    8: Kind("Test accuracy of the last epoch, miniImageNet", "miniimagenet", "wrn18", _ends),
    9: Kind(r"The contrastive property: $\phi(t)$ of Definition 1", None, None, _phi),
    10: Kind(r"The scalar problem: $\ell(a) + C\,|a|$", None, None, _profiles),
}  # fmt: skip
