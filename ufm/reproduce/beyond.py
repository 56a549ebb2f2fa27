"""SHELF of statements beyond the paper: what others say about this model and its extensions.

A row is as in `statements.py`; its `paper` is the cited work, in our words. To add a statement, add a row.
"""

from __future__ import annotations

from functools import partial

from ufm.figures import Panel
from ufm.reproduce import _depth, _features, _few, _limits, _section_4, _unequal
from ufm.reproduce._records import Row

_Row = partial(Row, part="beyond")

#: The rows, in the order of the report.
BEYOND: tuple[Row, ...] = (
    _Row(
        id="merging",
        title="At one strength of the penalties the classes of equal count coincide",
        section="Hong and Ling 2023",
        paper="For cross-entropy with two groups of classes the minority's features and classifiers "
        "coincide from a sharp threshold on, lam_W lam_H = n_B/N^2, and are apart below it.",
        formulas=(
            r"p_{\text{target}} - p_{\text{same group}} = \max \left( 0, 1 - \alpha - "
            r"\frac{N \sqrt{\lambda_W \lambda_H}}{\sqrt{n_g}} \right)",
        ),
        measured="f is minimised 0.5 % below and above each threshold; the probabilities against the "
        "formula, and the threshold that they imply against the theory's.",
        known="holds",
        remark="It is exact for any number of groups, for label smoothing (times 1 - alpha) and for every "
        "bias.",
        jobs=_unequal.merging,
        panels=(Panel("gap", "N sqrt(lam_W lam_H)", "target less another probability of the group"),),
    ),
    _Row(
        id="minority-collapse",
        title="Minority collapse",
        section="Fang et al. 2021",
        paper="In the layer-peeled model the classifiers of the minority classes coincide as the ratio R of "
        "the counts grows; a finite R_0 from which on they do is found numerically.",
        formulas=(
            r"\frac{1}{K} \sum_k \|w_k\|^2 \le E_W , \quad \frac{1}{K} \sum_k \frac{1}{n_k} \sum_i "
            r"\|h_{k,i}\|^2 \le E_H",
        ),
        measured="R_0 by the theory: the norm that it implies against the constraint, by a search with the "
        "minority as one class. The model itself at 0.98, 1.02 and 4 times R_0.",
        known="holds",
        remark="R_0 is exact for two groups: where the multiplier of the norm is n_B/N. With E_W E_H = 5 it "
        "is 12.192447 for 5 + 5 classes.",
        jobs=_limits.collapse,
        panels=(Panel("ratio", "sqrt(E_W E_H)", "R_0 = n_A/n_B", yscale="log"),),
    ),
    _Row(
        id="seli",
        title="The limit of vanishing penalties",
        section="Thrampoulidis et al. 2022",
        paper="As the penalties vanish, the logits align with I - 11'/K, whatever the counts are (SELI).",
        formulas=(
            r"z_k - z_j = \log \frac{1}{x} + \log \frac{\sqrt{n_k}}{\left| F_{jk} \right|} + o(1) , \quad "
            r"x = N \sqrt{\lambda_W \lambda_H}",
        ),
        measured="The direction of the optimum at x = 1e-6, 1e-9 and 1e-12, extrapolated; the offsets of the "
        "margins against a matrix root; the optimum against a search.",
        known="holds with a correction",
        correction="True without a bias or with a penalised one, at the slow rate 1/log(1/x), with offsets "
        "that depend on the counts. With a free bias the limit is (I - 11'/K)(I - pi 1'), pi = n/N.",
        jobs=_limits.vanishing,
    ),
    _Row(
        id="orthogonal-frames",
        title="Squared error with unequal counts: orthogonal frames",
        section="Dang et al. 2023",
        paper="For squared error without a bias, features and classifiers are orthogonal, with lengths that "
        "depend on the counts, and a class vanishes below a threshold.",
        formulas=(
            r"z_k = \max \left( 0, \beta - \frac{N \sqrt{\lambda_W \lambda_H}}{2 \kappa \sqrt{n_k}} \right)",
        ),
        measured="f is minimised with one class 0.5 % below and above its threshold: logits, lengths and "
        "angles against the formulas.",
        known="holds",
        jobs=_unequal.frames,
    ),
    _Row(
        id="given-etf",
        title="A given simplex ETF prevents minority collapse",
        section="Yang et al. 2022",
        paper="With the classifier fixed to a simplex ETF the features align with its rows at one length, "
        "whatever the counts are.",
        formulas=(
            r"h_{k,i} = \frac{a}{\omega^2} w_k , \quad \ell'(a) + \theta a = 0 , \quad "
            r"\theta = \frac{N \lambda_H (K-1)}{K \omega^2}",
        ),
        measured="The convex problem is solved for unequal counts, without a bias and with a free one.",
        known="holds with a correction",
        correction="Exact without a bias. With a trainable free bias it is lost: the features of small "
        "classes are the longest, none is along its row, and f is lower.",
        jobs=_unequal.given,
    ),
    _Row(
        id="deep-cross-entropy",
        title="Deep linear classifiers: cross-entropy",
        section="Dang et al. 2023, cross-entropy",
        paper="With several linear layers and cross-entropy the global minima are neural collapse.",
        formulas=(
            r"\frac{q}{2} \Lambda^{1/q} \sum_i \sigma_i(Z)^{2/q} = \min_{W_M \cdots W_1 H = Z} \sum_j "
            r"\frac{\lambda_j}{2} \|A_j\|^2",
        ),
        measured="Neural collapse in closed form, and from a descent near it, against the lowest point of "
        "eight random starts.",
        known="fails",
        remark="With two layers and four classes a square is lower: 0.384942462 < 0.389587914 at a fifth of "
        "C_tie. Roots of singular values prefer low rank. For K = 2, and for squared error, it is true.",
        jobs=_depth.collapse_ce,
        panels=(Panel("depth", "C / C_tie", "f, cross-entropy, K = 4, two layers"),),
    ),
    _Row(
        id="deep-squares",
        title="Deep linear classifiers: squared error",
        section="Tirer and Bruna 2022, Dang et al. 2023",
        paper="With several linear layers, squared error and no bias the global minima are an orthogonal "
        "frame, or zero.",
        formulas=(r"\frac{2}{K} (\beta - a) \, a^{1 - 2/q} = c_q = (n \Lambda)^{1/q}",),
        measured="f* and the logits in closed form against descents, below the tie with zero, 1 % below it "
        "and 1 % above it.",
        known="holds",
        remark="Tirer and Bruna have two layers, Dang et al. any number. At the tie every rank is optimal.",
        jobs=_depth.collapse_mse,
    ),
    _Row(
        id="low-rank",
        title="Collapse stops being optimal in deep models",
        section="Sukenik et al. 2024",
        paper="Beyond two layers or two classes neural collapse is not optimal in deep models, because the "
        "penalties of many layers prefer a low rank.",
        formulas=(r"\sum_i \sigma_i^{2/q} , \quad q = M + 1 \ge 3",),
        measured="ReLU layers: descents that end below neural collapse. Linear layers with squared error: a "
        "proved lower bound, and descents.",
        known="holds with a correction",
        correction="With ReLUs it takes depth and classes together: a lower point exists for four layers "
        "and four classes. With linear layers and squared error neural collapse is optimal at every depth.",
        jobs=_depth.low_rank,
    ),
    _Row(
        id="degeneracy",
        title="Minima of low rank are more degenerate",
        section="Garrod and Keating 2024",
        paper="In deep linear models the lowest minima have low rank; their degeneracy is that of the "
        "rotations between the layers.",
        formulas=(r"\dim \ker \nabla^2 f = \sum_j \left( \frac{r(r-1)}{2} + r (d_j - r) \right)",),
        measured="The Hessian, by differences, at the lowest point and at neural collapse of four classes: "
        "zero and negative eigenvalues.",
        known="holds",
        remark="The origin is a strict local minimum as well: its Hessian is the penalties alone.",
        jobs=_depth.degeneracy,
    ),
    _Row(
        id="nonnegative",
        title="Features that are not negative: orthogonal frames",
        section="Dang et al. 2024",
        paper="For cross-entropy and features after a rectifier the class means are orthogonal, with "
        "lengths that depend on the counts, the classifier is the centred frame, and classes vanish one by "
        "one.",
        formulas=(
            r"1 - p_k = N \sqrt{\lambda_W \lambda_H} \sqrt{\frac{K-1}{K n_k}} , \quad h_k = \eta_k e_k \ge 0",
        ),
        measured="f is minimised over H >= 0, without a bias 0.5 % below and above the threshold of a "
        "class; with a free bias, against the best orthogonal frame.",
        known="holds with a correction",
        correction="True without a bias. With a free bias it fails where a class holds more than half of the "
        "samples: counts 40, 1, 1 and 1 have 0.254597 with that class at the origin; the frame has 0.272740.",
        jobs=_features.nonnegative,
    ),
    _Row(
        id="unit-vectors",
        title="Unit vectors: neural collapse and a benign landscape",
        section="Yaras et al. 2022",
        paper="For rows and features of norm one and d >= K, cross-entropy has no spurious minimum, and its "
        "global minima are a simplex ETF with h = w.",
        formulas=(r"f^\ast = \log \left( 1 + (K-1) e^{-s K/(K-1)} \right)",),
        measured="Where random starts end for d >= K; a descent from a stored start for K = 3, d = 2.",
        known="holds",
        remark="d >= K is needed: for K = 3, d = 2 and scale 10 there is a strict local minimum 0.461133 "
        "above the optimum, although the optimum is the same.",
        jobs=_features.spheres,
    ),
    _Row(
        id="softmax-codes",
        title="Fewer dimensions than classes: softmax codes",
        section="Jiang et al. 2023",
        paper="For unit vectors in fewer dimensions than classes the optimum is self-dual, h = w, and "
        "spreads the rows: equally in the plane, and with no acute angle for d + 2 <= K <= 2d.",
        formulas=(r"f = \log \sum_j e^{s (\cos(2 \pi j/K) - 1)} , \quad d = 2",),
        measured="The lowest of random starts on spheres: angles in the plane, and cosines for K = 2d. With "
        "weight decay and a free bias: the Hessian at the regular polygon, and the lowest of random starts.",
        known="holds",
        remark="It is a statement on spheres. With weight decay and a free bias the regular hexagon is a "
        "strict saddle, and a pentagon with one class at the origin is lower.",
        jobs=_few.codes,
    ),
    _Row(
        id="few-dimensions",
        title="The best arrangement in fewer dimensions with weight decay",
        section="open, beside Jiang et al. 2023",
        paper="For d < K - 1, weight decay and a free bias the lowest arrangements known are optimal.",
        formulas=(r"f^\ast \ge \min_{\tau, r} \frac{1}{K} \sum_k \psi(\tau_k, r_k) + c \sum_k \tau_k",),
        measured="New random starts against the record that comes with the package; its values against f, "
        "and against a proved lower bound.",
        known="open",
        undecided="No start is lower, but between the bound and the lowest value known nothing is proved.",
        jobs=_few.arrangements,
    ),
    *(row for row in _section_4.rows() if row.part == "beyond"),
)
