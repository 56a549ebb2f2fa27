"""The claims of Section 4 of the paper about trained networks, and one of ours, as rows of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ufm.deep import SweepPlan, mini
from ufm.deep.datasets import Dataset
from ufm.figures import Curve, Panel, paper
from ufm.figures.paper import Made
from ufm.reproduce import _last_layers, _networks
from ufm.reproduce._networks import Source
from ufm.reproduce._records import Part, Row, RowVerdict, Unmeasured

#: the network's last layer in the paper's notation, which the definitions of NC1 to NC3 use
_NC1 = r"\text{NC}_1 = \frac{1}{K} \text{tr}(\Sigma_W \Sigma_B^\dagger)"
_NC2 = (
    r"\text{NC}_2 = \left\| \frac{W W^\top}{\|W W^\top\|} - \frac{1}{\sqrt{K-1}} "
    r"\left( I - \frac{1}{K} 1 \, 1^\top \right) \right\|"
)
_NC3 = (
    r"\text{NC}_3 = \left\| \frac{W \bar{H}}{\|W \bar{H}\|} - \frac{1}{\sqrt{K-1}} "
    r"\left( I - \frac{1}{K} 1 \, 1^\top \right) \right\|"
)
_ACCURACY = r"\text{acc} = \frac{1}{N} \sum_i 1 [ \argmax_k z_{i,k} = y_i ]"


#: ends the remark of a row
_SCALE = " This is a miniature: small networks, 5,000 images, 200 epochs. It says nothing of the paper's own."


class _Claim(NamedTuple):
    """A row before it is known which records it is measured on."""

    figure: int | None  # of the paper
    measure: _networks.Measure
    id: str
    title: str
    section: str
    paper: str
    formulas: tuple[str, ...]
    measured: str
    panels: tuple[Panel, ...]
    known: RowVerdict = "fails"  # of the records that the package ships
    remark: str = ""
    part: Part = "paper"


_CLAIMS = (
    _Claim(
        1,
        _networks.collapse,
        id="networks-collapse",
        title="Trained networks: NC1, NC2 and NC3 fall together for every loss",
        section="Section 4, figures 1 and 5",
        paper="With all four losses NC1, NC2 and NC3 of the last layer fall together in the terminal phase.",
        formulas=(_NC1, _NC2, _NC3),
        measured="Our own networks, the largest width and number of epochs: the fall of each from the "
        "first to the last measurement, and the rank correlation of each pair over the measurements.",
        remark="NC1 falls with every loss. MSE collapses, and so does label smoothing but for NC2. "
        "Cross-entropy and focal loss fit all images long before the end and are still far from collapse. "
        "The row on what separates the classifier from a simplex says what is left." + _SCALE,
        panels=(Panel("nc1", "epoch", "NC1, NC2 and NC3", yscale="log"),),
    ),
    _Claim(
        2,
        _networks.accuracies,
        id="networks-accuracy",
        title="Trained networks: all losses fit the training data and end with like test accuracies",
        section="Section 4, figures 2 and 6",
        paper="Training accuracies reach 100 % with every loss, and test accuracies end alike.",
        formulas=(_ACCURACY,),
        measured="The last measurement at the largest width and number of epochs: what the training "
        "accuracy lacks to 100 %, and the largest difference between losses in test accuracy.",
        remark="Every loss fits all images. With a tenth of them for training, test accuracies end more "
        "than a point apart." + _SCALE,
        panels=(Panel("train_accuracy", "epoch", "accuracies"),),
    ),
    _Claim(
        3,
        _networks.better,
        id="networks-width-epochs",
        title="Trained networks: width and epochs help every loss, and the losses then differ less",
        section="Section 4, figures 3 and 6",
        paper="Test accuracy grows with width and with epochs for every loss; the largest difference "
        "between losses shrinks from 1.037 points (narrow, short) to 0.36 (wide, long).",
        formulas=(_ACCURACY,),
        measured="The gain in test accuracy along each axis at each value of the other, and the ratio of "
        "the largest differences.",
        remark="The difference between losses shrinks by less than its spread over the seeds." + _SCALE,
        known="holds",
        panels=(Panel("test_accuracy", "width", "test accuracy"),),
    ),
    _Claim(
        4,
        _networks.collapse_grid,
        id="networks-nc1",
        title="Trained networks: NC1 falls about a thousandfold with width and epochs",
        section="Section 4, figures 4 and 7",
        paper="NC1 of the narrow networks trained for a short time is about a thousand times that of the "
        "wide ones trained for a long time.",
        formulas=(_NC1,),
        measured="The ratio of NC1 at the smallest and the largest cell of our grid; it agrees with the "
        "paper within a factor of ten.",
        remark="NC1 falls with every loss, about ten times further with MSE than with cross-entropy or focal "
        "loss." + _SCALE,
        panels=(Panel("nc1", "width", "NC1", yscale="log"),),
    ),
    _Claim(
        8,
        _networks.two_ends,
        id="networks-two-ends",
        title="Trained networks: the two ends of the grid",
        section="Section 4, figure 8",
        paper="From narrow, short to wide, long training every loss gains test accuracy, and the four "
        "end closer together (miniImageNet: 2.8 points apart, then 0.9).",
        formulas=(_ACCURACY,),
        measured="The same two ends of our grid on CIFAR-10: the gain of each loss, and the ratio of the "
        "largest differences.",
        remark="Every loss gains; the losses end closer by less than the spread over the seeds." + _SCALE,
        known="holds",
        panels=(Panel("test_accuracy", "width", "test accuracy of the last epoch"),),
    ),
    _Claim(
        None,
        _last_layers.causes,
        id="networks-last-layer",
        title="Trained networks: what separates the classifier from a simplex",
        section="ours, beside Section 4",
        paper="Not in the paper: features behind a rectifier are not negative and biases are decayed. The "
        "last layer is compared with the optimum of non-negative features at its own penalties and counts, "
        "which for MSE with a decayed bias is no simplex. The rest of NC2 goes with NC1.",
        formulas=(_NC2,),
        measured="NC2 of W as trained; of W trained on while the features stay as they are; the same at the "
        "class means alone; at the optimum. And over all runs, the rank correlation of NC1 and of NC2 less "
        "the optimum's.",
        panels=(
            Panel("causes", "NC2 of W", ""),
            Panel("rest", "NC1", "NC2 of W less the optimum's", xscale="log"),
        ),
        known="holds",
        part="beyond",
    ),
)


def rows(source: Source = mini.shipped) -> tuple[Row, ...]:
    """The rows, measured on the grid of this source."""

    def row(claim: _Claim) -> Row:
        figure, measure, *_ = claim
        told = dict(list(claim._asdict().items())[2:])
        draw = None if figure is None else partial(_drawn, figure, source)
        return Row(**told, draw=draw, jobs=partial(_networks.jobs, measure, source))

    return tuple(map(row, _CLAIMS))


def _drawn(number: int, source: Source, curves: Sequence[Curve]) -> Made:
    """A figure of the paper from our own runs; the curves, which the records keep, are the same numbers."""
    grid = source()
    runs = grid.runs
    if number in (1, 2):  # of one cell, that of the row
        runs = [run for run in runs if run.cell == _networks.shown(grid)]
    drawn = paper.draw(number, runs, data=str(runs[0].config["data"]))
    return Made(drawn.figure, drawn.runs, drawn.missing, drawn.numbers)


#: what the figures on the paper's own data would need
UNMEASURED = Unmeasured(
    "The deep networks at the paper's scale",
    "Our own networks are small and see 5,000 images of CIFAR-10. Figures 1 to 4 at full scale need 2.84e19 "
    "floating-point operations; figures 5 to 7 (CIFAR-100) need as many again, and figure 8 needs "
    "miniImageNet. `ufm train` trains all of them, and the option --runs adds their figures.",
)


# --- training anew --------------------------------------------------------------------------------


def plan(out: Path, data: str | Path | Dataset, data_dir: str | Path | None, skip_shipped: bool) -> SweepPlan:
    """The runs of the grid in the folder `deep` of a report, checked."""
    return mini.plan(out / "deep", data, data_dir=data_dir, experiment=mini.MINI, skip_shipped=skip_shipped)


def trained(
    given: Iterable[Row], made: SweepPlan, skip_shipped: bool, progress: bool | None
) -> tuple[Row, ...]:
    """Train what is planned, and the rows with those about networks measured on it.

    Raises:
        OSError: a run could not be trained or saved; those that are finished are kept.
    """
    done = mini.train(made, progress=progress)
    if done.troubles:
        raise OSError(f"deep: {'; '.join(done.troubles)}; the finished runs are kept in {made.out}")
    found = mini.read(made.out, mini.MINI)
    grid = found.joined(mini.shipped()) if skip_shipped else found
    own = {row.id: row for row in rows(lambda: grid)}
    return tuple(own.get(row.id, row) for row in given)
