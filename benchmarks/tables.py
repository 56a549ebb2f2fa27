"""SHELF of tables: what measures each, what it says, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import collapse, convex, scaling, solving, spectra, sweeps, training
from benchmarks.machine import Row


class Table(NamedTuple):
    """`group`: rows equal in these columns are alternatives to each other; none where nothing is compared."""

    rows: Callable[[bool], Iterator[Row]]
    text: str
    group: tuple[str, ...] = ()
    column: str = "solver"  # that names the side
    named: tuple[str, ...] = ()  # alternatives with a ratio of their own
    task: Callable[[Row], str] | None = None  # its name in the summary
    summarised: Callable[[Row], bool] = lambda row: True
    valid: Callable[[Row], bool] = lambda row: True  # an alternative that counts

    def side(self, row: Row) -> str:
        return str(row.get(self.column, ""))

    def is_ours(self, row: Row) -> bool:
        return self.side(row).startswith("ufm")


def _shape(row: Row) -> str:
    case = f", case {row['case']}" if "case" in row else ""
    return f"K={row.get('K')}, d={row.get('d')}, n={row.get('n')}{case}"


#: the solvers of the summary; the others show what each change of coordinates is worth
_SHOWN = ("ufm newton", "ufm newton, nor penalties balanced", "ufm newton, class means (reduced)")
_NAMED = ("scipy L-BFGS-B", "torch L-BFGS")

TABLES: dict[str, Table] = {
    "accuracy": Table(
        solving.accuracy,
        """## Accuracy
`solve_ufm` at K=10, d=64, n=10 with its default tolerance (1e-10), against the closed form f*.""",
    ),
    "starts": Table(
        solving.starts,
        """## Starts of every size
The fraction of Gaussian starts that `solve_sweep` (Newton, default options) takes to the global minimum, to
1e-10, at K=10, d=64, n=10 with lam = sqrt(lam_W lam_H) and lam_W = 4 lam_H. The other columns are named after
the standard deviation of the start's entries. From 100 on every softmax is saturated.""",
    ),
    "time": Table(
        solving.times,
        """## Time to |grad f| <= 1e-8
Cross-entropy, K=10, d=64, same starts and stopping rule for all, compilation and the choice of step sizes
excluded; median over repetitions, then over seeds. Case A: lam_W = lam_H = 0.2/(K sqrt n); case B: lam_W =
5e-3, lam_H = 1e-5. Peers solve equation (7) as it stands, scipy's with our jitted derivatives; Adam and SGD
(full batch, momentum 0.9) have a constant step size, of nine the one with the lowest f after 300 steps.
`ufm newton` solves the full problem, every sample free, after two changes of coordinates of its own: balanced
penalties, and features turned into the row space of W (K of d dimensions). The rows *not rotated* and *nor
balanced* leave these out, as a peer could be given them. The class-mean reduction uses that the loss is
convex and stands in a row of its own. *Not in*: the cap in seconds passed first.""",
        group=("K", "d", "n", "case"),
        named=_NAMED,
        task=lambda row: f"solve, {_shape(row)}",
        summarised=lambda row: row["solver"] in _SHOWN,
    ),
    "large": Table(
        solving.large,
        """## A large problem
K=100, d=512, n=100: 5.2 million unknowns, cross-entropy, |grad f| <= 1e-8, one start. Ours in a process of
its own (peak memory: the whole process); compilation excluded for all.""",
        group=("K", "d", "n", "case"),
        named=_NAMED,
        task=lambda row: "solve, 5.2 million unknowns",
    ),
    "convex": Table(
        convex.rows,
        """## The convex reformulation
cvxpy on min over Z = W H of the mean loss + sqrt(lam_W lam_H) |Z|_*, every sample a column or one column a
class, against our solver on the same problem. |grad f| is measured at the factors of cvxpy's Z. Its first
call, which finds the canonical form, is not counted in the full run.""",
        group=("K", "d", "n", "formulation"),
        task=lambda row: f"solve against a convex solver, {row['formulation']}, {_shape(row)}",
    ),
    "sweep": Table(
        sweeps.sweeps,
        """## Sweeps
Seeds x 10 penalties (1e-4 to 2e-2) at K=10, d=64, n=10, cross-entropy; `seconds`: a problem. Ours to the
default tolerance 1e-10; peers, on fewer problems, to 1e-8 (optax in 2000 steps at most). scipy compiles its
derivatives once for all penalties.""",
        group=("none",),
        column="side",
        task=lambda row: f"sweep of {row['problems']} problems, each",
        valid=lambda row: row["converged"] == 1,
    ),
    "first": Table(
        sweeps.first_answer,
        """## First answer
A process that imports, solves label smoothing at K=10, d=64, n=10 once and ends. The numpy script has its
gradient written by hand for this one loss and compiles nothing.""",
        group=("none",),
        column="side",
        task=lambda row: f"first answer of a process, compilation cache {row['compilation cache']}",
    ),
    "floor": Table(
        solving.floors,
        """## Distance from the floor
A Hessian-vector product costs 12 K min(d, K) N operations, a gradient 6, turning the features 4 K d N. The
floor is these operations at the speed of a 2000 x 2000 product on the same machine (the better of JAX's and
PyTorch's), or, where the largest cache does not hold the problem, the bytes that products, conjugate
gradients and gradients move at the speed of a triad over 512 MB, whichever is larger.""",
    ),
    "metrics": Table(
        collapse.rows,
        """## NC1-NC4
Random features with class structure, scatter 0.05; balanced classes. Peers as they are commonly written:
Sigma_W and Sigma_B as d x d matrices and a pseudo-inverse with its default cut-off. *error of NC1*: relative,
against K - 1 contrasts orthogonalised by QR in float64. A row whose error exceeds 1e-2 is no alternative
in the summary. Each side in a process of its own with every core (OpenBLAS: peers all, ours one thread,
what is faster for each); streamed: batches of 2000, two passes.
Floor: the features read twice, for the means and for their products with the means' axes and with W.""",
        group=("K", "d", "N", "dtype"),
        column="side",
        task=lambda row: f"NC1-NC4, K={row['K']}, d={row['d']}, N={row['N']}, {row['dtype']}",
        valid=lambda row: row["error of NC1"] < 1e-2,
    ),
    "deep": Table(
        training.rows,
        """## The training step of a deep network
Forward, backward, clipping, decay, momentum; float32, CIFAR-size images in memory, width 0.25; every side in
a process of its own, rounds interleaved, medians. Ratios are taken round by round. `ufm, 4 devices`: the
batch sharded over virtual devices of the same cores. Ours keep freed memory, as `ufm train` does; *kept* is
PyTorch with that switch, which nobody sets. Floor: the three products of every convolution and of the last
layer, each of input, output and weights moved once a product.""",
        group=("net", "batch"),
        column="side",
        named=("torch channels_last",),
        task=lambda row: f"training step, {row['net']}, batch {row['batch']}",
    ),
    "eigenvalues": Table(
        spectra.all_eigenvalues,
        """## All eigenvalues of the Hessian
Cross-entropy, K=10, d=64, at the optimum and at a strict saddle of rank 5 (two escapes from the origin apart
from it), median of five. Dense: LAPACK on the autodiff Hessian, in a process of its own with every core.""",
        group=("n", "where"),
        column="method",
        task=lambda row: f"all {row['dimension']:,} eigenvalues, {row['where']}",
    ),
    "inertia": Table(
        spectra.inertias,
        """## Inertia where nothing coincides
K=10, d=64; random points whose features all differ, in 10 of 64 directions or in all. Median of three.""",
    ),
    "smallest": Table(
        spectra.smallest,
        """## One end of the spectrum
The strict saddle is a simplex ETF of 50 groups of two classes (K=100, d=64, rank 49). All get the same
point, and the same accuracy is asked of all: an error of at most 1e-5 of the largest |eigenvalue|, against
the exact value (decomposition, or slicing by inertia). Each side gets the loosest power of ten as its
tolerance with which it is that accurate (ours and eigsh bound a residual, PyHessian the last change), and is
timed with it. PyHessian finds the eigenvalue of largest modulus only.""",
        group=("where", "which"),
        column="method",
        task=lambda row: f"{row['which']} eigenvalue, {row['where']}, {row['dimension']:,} unknowns",
    ),
    "flattest": Table(
        spectra.smallest_positive,
        """## The flattest direction at the optimum
Cross-entropy, K=10, d=64, n=10: the smallest positive eigenvalue, beside the null space of rotations.""",
    ),
    "search": Table(
        spectra.critical_points,
        """## Critical points found
Cross-entropy, K=4, d=6, n=2, lam_W=0.01, lam_H=0.02: `find_critical_points` without the families it may
start from, against those known analytically.""",
    ),
    "scaling": Table(
        scaling.rows,
        """## Scaling
Cross-entropy, case A; over N at K=10, d=64, over K at d=512, n=10, over d at K=10, n=100. Compilation
excluded; every point a process of its own. Memory: its peak above that of the smallest size, which is mostly
the compiler's. Exponents: least squares over the three largest sizes, memory where it exceeds 8 MiB.""",
        group=("over", "N", "K", "d", "task"),
        column="side",
        task=lambda row: f"{row['task']}, K={row['K']}, d={row['d']}, N={row['N']:,}",
        summarised=lambda row: row["over"] == "N",
    ),
}
