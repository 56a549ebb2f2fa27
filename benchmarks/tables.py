"""The tables of the benchmarks: the function that measures each, its text, and which rows are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import (
    collapse,
    convex,
    depth,
    gpu_program,
    imbalance,
    minute,
    nonnegative,
    scaling,
    solving,
    spectra,
    spheres,
    sweeps,
    training,
)
from benchmarks.machine import Row


class Table(NamedTuple):
    """A table. Rows that agree in the columns `group` are alternatives to each other; () compares nothing."""

    rows: Callable[[bool], Iterator[Row]]
    text: str
    group: tuple[str, ...] = ()
    column: str = "solver"  # the column that names the solver or library
    named: tuple[str, ...] = ()  # alternatives for which a separate ratio is shown
    task: Callable[[Row], str] | None = None  # the name of a row in the summary
    summarised: Callable[[Row], bool] = lambda row: True
    valid: Callable[[Row], bool] = lambda row: True  # whether an alternative is accurate enough to count

    def side(self, row: Row) -> str:
        return str(row.get(self.column, ""))

    def is_ours(self, row: Row) -> bool:
        return self.side(row).startswith("ufm")


def _shape(row: Row) -> str:
    case = f", case {row['case']}" if "case" in row else ""
    return f"K={row.get('K')}, d={row.get('d')}, n={row.get('n')}{case}"


#: the solvers in the summary; the other rows show the gain of each change of coordinates
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
The fraction of Gaussian starts from which `solve_sweep` (Newton, default options) reaches the global
minimum to 1e-10, at K=10, d=64, n=10 with lam = sqrt(lam_W lam_H) and lam_W = 4 lam_H. The columns 0.001
to 1000 are the standard deviations of the entries of the start. From 100 on, every softmax is saturated.""",
    ),
    "time": Table(
        solving.times,
        """## Time to |grad f| <= 1e-8
Cross-entropy at K=10, d=64, with the same starts and the same stopping rule for all solvers. Compilation
and the choice of step sizes are excluded; times are medians over repetitions, then over seeds. Case A:
lam_W = lam_H = 0.2/(K sqrt n); case B: lam_W = 5e-3, lam_H = 1e-5. The peers solve equation (7) directly,
those of scipy with our jitted derivatives. Adam and SGD (full batch, momentum 0.9) use a constant step
size, the one of nine with the lowest f after 300 steps. `ufm newton` solves the full problem, in which
every sample is free, after two changes of coordinates: it balances the penalties, and it rotates the
features into the row space of W (K of d dimensions). The rows *not rotated* and *nor balanced* omit the
first or both of these, because a peer could be given them. The class-mean reduction relies on the
convexity of the loss and has a row of its own. *Not in*: the time limit in seconds was reached first.""",
        group=("K", "d", "n", "case"),
        named=_NAMED,
        task=lambda row: f"solve, {_shape(row)}",
        summarised=lambda row: row["solver"] in _SHOWN,
    ),
    "large": Table(
        solving.large,
        """## A large problem
K=100, d=512, n=100, that is 5.2 million unknowns; cross-entropy, |grad f| <= 1e-8, one start. Our solver
runs in a separate process (peak memory: the whole process). Compilation is excluded for all.""",
        group=("K", "d", "n", "case"),
        named=_NAMED,
        task=lambda row: "solve, 5.2 million unknowns",
    ),
    "imbalance": Table(
        imbalance.large,
        """## A large problem with unequal classes
Cross-entropy, K=100, d=512, counts that fall geometrically from `most` to `least`; |grad f| <= 1e-8, one
start, lam_W = lam_H = 0.2/(K sqrt n) at the mean count n. Our solver runs in a separate process (peak
memory: the whole process). *gap*: the certificate's bound on f - f*. Compilation is excluded for all.""",
        group=("K", "d", "most", "least"),
        named=_NAMED,
        task=lambda row: f"solve, classes of {row['most']} to {row['least']} samples",
    ),
    "optima": Table(
        imbalance.optima,
        """## The optimum of three groups of classes
`theory.global_optimum` for 30, 40 and 30 classes of 500, 60 and 5 samples, compilation excluded, and what
the class-mean solve of the unstructured problem ends above it.""",
    ),
    "depth": Table(
        depth.times,
        """## Depth: time to |grad f| <= 1e-8
Cross-entropy with three layers at K=10, n=100 and all widths 64; starts with standard deviation 0.3, which
do not fall into the origin. Case A: equal penalties with c_q = 0.2/K; case B: 5e-3 for each layer and 1e-5
for the features. The peers solve the same problem, those of scipy with our jitted derivatives. `ufm newton`
solves the full problem in K dimensions of each width and with equal penalties; the row *in the given
widths* leaves this out, and *class means* relies on the convexity of the loss. From one start all may end
at different local minima; the column shows the lowest objective of the seeds.""",
        group=("layers", "K", "d", "n", "case"),
        task=lambda row: f"solve {row['layers']} layers, K=10, d=64, n=100, case {row['case']}",
        summarised=lambda row: row["solver"] in _SHOWN,
    ),
    "depth ends": Table(
        depth.ends,
        """## Depth: where random starts end
Cross-entropy at K=10, d=64, n=10 with all penalties 5e-3 and the default tolerance 1e-10, against the lowest
structure known, which is not proved to be the optimum.""",
    ),
    "convex": Table(
        convex.rows,
        """## The convex reformulation
cvxpy minimises the mean loss + sqrt(lam_W lam_H) |Z|_* over Z = W H, with one column for each sample or
for each class; our solver solves the same problem. |grad f| is measured at the factors of cvxpy's Z. The
first call of cvxpy, which computes the canonical form, is not counted in the full run.""",
        group=("K", "d", "n", "formulation"),
        task=lambda row: f"solve against a convex solver, {row['formulation']}, {_shape(row)}",
    ),
    "spheres": Table(
        spheres.rows,
        """## Unit vectors
Cross-entropy with rows and features of norm one, K=10, d=64, to a Riemannian gradient of 1e-8. pymanopt's
trust region has our jitted objective, gradient and Hessian-vector product. The sides take turns on the
same starts; times are medians over the seeds. `ufm newton` turns what features have outside of the row
space of W into one direction, which leaves the objective alone, and balances the norms of features and
rows; the rows *not turned* and *nor norms balanced* omit the first or both of these.""",
        group=("K", "d", "n", "scale"),
        named=("pymanopt trust regions",),
        task=lambda row: f"solve on spheres, scale {row['scale']:g}, {_shape(row)}",
        summarised=lambda row: row["solver"] == "ufm newton",
    ),
    "nonnegative": Table(
        nonnegative.rows,
        """## Features that are not negative
Cross-entropy under H >= 0, K=10, d=64, to a residual of the conditions of Karush, Kuhn and Tucker of 1e-8.
scipy's L-BFGS-B has the bounds, 20 pairs and our jitted objective and gradient. The sides take turns on the
same starts; times are medians over the seeds.""",
        group=("K", "d", "n", "case"),
        named=("scipy L-BFGS-B, bounds",),
        task=lambda row: f"solve with H >= 0, {_shape(row)}",
        summarised=lambda row: row["solver"] in _SHOWN,
    ),
    "sweep": Table(
        sweeps.sweeps,
        """## Sweeps
Seeds x 10 penalties (1e-4 to 2e-2) at K=10, d=64, n=10, cross-entropy; `seconds` is the time per problem.
Our solver runs to its default tolerance 1e-10, the peers, on fewer problems, to 1e-8 (optax with at most
2000 steps). For scipy, the derivatives are compiled once for all penalties.""",
        group=("none",),
        column="side",
        task=lambda row: f"sweep of {row['problems']} problems, each",
        valid=lambda row: row["converged"] == 1,
    ),
    "first": Table(
        sweeps.first_answer,
        """## First answer
The time of a process that imports the package, solves label smoothing at K=10, d=64, n=10 once and exits.
The numpy script has a gradient written by hand for this one loss and compiles nothing.""",
        group=("none",),
        column="side",
        task=lambda row: f"first answer of a process, compilation cache {row['compilation cache']}",
    ),
    "minute": Table(
        minute.rows,
        """## The first minute
Processes as a new user starts them, from start to exit. Cold: each has an empty compilation cache. Warm:
the cache has been filled by the same command.""",
    ),
    "floor": Table(
        solving.floors,
        """## Distance from the floor
A Hessian-vector product costs 12 K min(d, K) N operations, a gradient 6 K min(d, K) N, and the rotation
of the features 4 K d N. The floor is the time of these operations at the speed of a 2000 x 2000 matrix
product on the same machine (the faster of JAX's and PyTorch's). If the problem does not fit into the
largest cache, the floor is at least the time to move the bytes of products, conjugate gradients and
gradients at the speed of a triad over 512 MB.""",
    ),
    "metrics": Table(
        collapse.rows,
        """## NC1-NC4
Random features with class structure and scatter 0.05; balanced classes. The peers use the common
formulation: Sigma_W and Sigma_B as d x d matrices and a pseudo-inverse with its default cut-off. *error
of NC1* is the relative error against K - 1 contrasts orthogonalised by QR in float64. A row whose error
exceeds 1e-2 is not used as an alternative in the summary. Each implementation runs in a separate process
with every core (OpenBLAS uses all threads for the peers and one thread for ours, which is the faster
choice for each). *Streamed*: batches of 2000, two passes. Floor: the features are read twice, for the
means and for their products with the axes of the means and with W.""",
        group=("K", "d", "N", "dtype"),
        column="side",
        task=lambda row: f"NC1-NC4, K={row['K']}, d={row['d']}, N={row['N']}, {row['dtype']}",
        valid=lambda row: row["error of NC1"] < 1e-2,
    ),
    "deep": Table(
        training.rows,
        """## The training step of a deep network
Forward and backward pass, clipping, weight decay and momentum; float32, CIFAR-size images in memory,
width 0.25. Every implementation runs in a separate process, with interleaved rounds; times are medians,
and ratios are taken round by round. `ufm, 4 devices`: the batch is sharded over virtual devices on the
same cores. Our processes keep freed memory, as `ufm train` does; *kept* is PyTorch with the same setting
of the C library, which is rarely used. Floor: the three products of every convolution and of the last
layer, with input, output and weights moved once for each product.""",
        group=("net", "batch"),
        column="side",
        named=("torch channels_last",),
        task=lambda row: f"training step, {row['net']}, batch {row['batch']}",
    ),
    "gpu": Table(
        gpu_program.rows,
        """## Programs for a GPU: compiled, not run
Compiled by XLA for an H100 without one (`benchmarks/gpu_program.py`). *GB moved* is what the kernels of one
pass through a loop read and write, *at least* this over the card's bandwidth, 3.35 TB/s. Loops inside a loop
have rows of their own. Before batch norm took its moments in one pass with the residual and the ReLU in the
same kernel, and before parameters of equal shape were updated together, the step of wrn50(1) moved 17.9 GB
in 1,244 kernels. Its convolutions and products alone move 5.4 GB.""",
    ),
    "eigenvalues": Table(
        spectra.all_eigenvalues,
        """## All eigenvalues of the Hessian
Cross-entropy, K=10, d=64, at the optimum and at a strict saddle of rank 5 (reached by two escapes from
the origin); median of five. *Dense*: LAPACK on the Hessian by autodiff, in a separate process with every
core.""",
        group=("n", "where"),
        column="method",
        task=lambda row: f"all {row['dimension']:,} eigenvalues, {row['where']}",
    ),
    "inertia": Table(
        spectra.inertias,
        """## Inertia where nothing coincides
K=10, d=64; random points at which all features differ and span 10 of the 64 directions or all of them.
Median of three.""",
    ),
    "smallest": Table(
        spectra.smallest,
        """## One end of the spectrum
The strict saddle is a simplex ETF of 50 groups of two classes (K=100, d=64, rank 49). All methods receive
the same point and must reach the same accuracy: an error of at most 1e-5 of the largest |eigenvalue|
against the exact value (from the decomposition, or from slicing by inertia). Each method is timed with
the loosest power of ten as its tolerance at which it is that accurate (ours and eigsh bound a residual,
PyHessian the last change). PyHessian finds only the eigenvalue of largest modulus.""",
        group=("where", "which"),
        column="method",
        task=lambda row: f"{row['which']} eigenvalue, {row['where']}, {row['dimension']:,} unknowns",
    ),
    "flattest": Table(
        spectra.smallest_positive,
        """## The flattest direction at the optimum
Cross-entropy, K=10, d=64, n=10: the smallest positive eigenvalue, next to the null space of the
rotations.""",
    ),
    "search": Table(
        spectra.critical_points,
        """## Critical points found
Cross-entropy, K=4, d=6, n=2, lam_W=0.01, lam_H=0.02: the points that `find_critical_points` finds without
starting from the known families, compared with the points known analytically.""",
    ),
    "scaling": Table(
        scaling.rows,
        """## Scaling
Cross-entropy, case A; N varies at K=10, d=64, K at d=512, n=10, and d at K=10, n=100. Compilation is
excluded, and every point runs in a separate process. Memory is the peak above that of the smallest size,
which is mostly the compiler's. Exponents are least-squares fits to the three largest sizes, for memory
where it exceeds 8 MiB.""",
        group=("over", "N", "K", "d", "task"),
        column="side",
        task=lambda row: f"{row['task']}, K={row['K']}, d={row['d']}, N={row['N']:,}",
        summarised=lambda row: row["over"] == "N",
    ),
}
