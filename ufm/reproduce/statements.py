"""SHELF of statements: each row says what the paper claims and how that is measured.

Zhou et al., "Are All Losses Created Equal: A Neural Collapse Perspective", NeurIPS 2022. A verdict follows
from the numbers alone (`Finding.verdict`); `known`, the expected verdict, is only compared with it. To add a
statement, add a row; those of other papers are in `beyond.py`.
"""

from __future__ import annotations

from ufm import _checks
from ufm.figures import Panel, contrastive
from ufm.reproduce import (
    _corollary_2,
    _definition_1,
    _focal_loss,
    _focal_window,
    _lemmas,
    _nuclear_norm,
    _scalar_problem,
    _section_4,
    _theorem_1,
    _theorem_2,
)
from ufm.reproduce._records import Row, Unmeasured
from ufm.reproduce.beyond import BEYOND

#: The rows about the paper, in the order of the report.
PAPER: tuple[Row, ...] = (
    Row(
        id="definition-1",
        title="Cross-entropy, label smoothing and focal loss have the contrastive property",
        section="Definition 1, Appendix B",
        paper="The three losses are bounded below by phi of the sum of logit differences, with equality at "
        "equal non-target logits only, and for any c > 0 phi(t) + c |t| has a unique minimiser t* < 0.",
        formulas=(
            r"L(z, k) \ge \phi \left( \sum_{j \ne k} (z_j - z_k) \right)",
            r"t^\ast = \argmin_t \phi(t) + c \left| t \right| , \quad t^\ast < 0 \; \forall c > 0",
        ),
        measured="Five tests of each loss (shift, class symmetry, averaging, strictness, uniqueness), and "
        "the sign of t* on both sides of the threshold.",
        remark="A sixth test is needed with a bias alone: the convex hull of phi touches phi at every t*. "
        "Where it fails, Theorem 1 with a bias needs another proof (focal loss, 6 <= K <= 17) or is false.",
        known="holds with a correction",
        correction='t* <= 0, and t* < 0 exactly for c below the threshold (1/K for cross-entropy): "for any '
        'c > 0" is true of no loss here. MSE is not a function of logit differences.',
        jobs=_definition_1.definition_1,
    ),
    Row(
        id="other-losses",
        title="Which other losses have the contrastive property",
        section="Definition 1",
        paper="Theorem 1 covers every loss with the contrastive property.",
        formulas=(r"L(z, k) \ge \phi(t) , \quad t = \sum_{j \ne k} (z_j - z_k)",),
        measured="The same six tests of losses from the literature at K = 5, against what each loss states; "
        "ties by autodiff; in the full grid f is minimised too.",
        known="holds",
        remark="A loss that fails T5 and T6 alone has neural collapse without a bias; with a free bias "
        "Theorem 1 is false for it near its tie.",
        jobs=_definition_1.other_losses,
    ),
    Row(
        id="theorem-1",
        title="Every global minimiser is neural collapse",
        section="Theorem 1, K up to 15",
        paper="At every global minimiser the rows of W have one norm, features are h_{k,i} = "
        "sqrt(lam_W/(lam_H n)) w^k, W W' is a simplex ETF, and b = 0 or b = beta 1.",
        formulas=(
            r"h_{k,i} = \sqrt{\frac{\lambda_W}{\lambda_H n}} w^k , \quad "
            r"W W^\top = s \left( I - \frac{1}{K} 1 \, 1^\top \right)",
            r"f^\ast = \min_{a \ge 0} \ell(a) + (K-1) c \, a , \quad c = \sqrt{n \lambda_W \lambda_H}",
        ),
        measured="f is minimised from random starts; at each solution every claim is measured against its "
        "tolerance (the worst is shown), with the closed-form optimum and a dual certificate.",
        known="holds",
        remark="For MSE the claims are its own: a simplex ETF only where the bias takes up the mean. The "
        "paper's W'W reads W W' and w^k are rows. d >= K-1 suffices.",
        jobs=_theorem_1.theorem_1,
        panels=(Panel("claims", "deviation / tolerance (1: the limit)", "", xscale="log"),),
    ),
    Row(
        id="partial-collapse",
        title="Theorem 1 for focal loss with a bias and many classes",
        section="Theorem 1, focal loss",
        paper="Theorem 1 holds for focal loss, with or without a bias, for any number of classes.",
        formulas=(
            r"\bar{Z} = a \left( I_m - \frac{1}{m} 1 \, 1^\top \right) , \quad m < K",
            r"f = \frac{m}{K} h(p_1) + \frac{K-m}{K} h(p_0) + c (m-1) a < f_{\text{NC}}",
        ),
        measured="f at an explicit point, a simplex of m classes with the others at the origin, against "
        "neural collapse and the origin, at the tie of the two.",
        known="fails",
        remark="Only the bias distinguishes the other classes. True without a bias, and with one "
        "wherever the convex hull of phi touches phi at t*: (K-1) c <= 1, or K <= 5. The next row is about "
        "6 <= K <= 17.",
        jobs=_focal_loss.partial_collapse,
        panels=(Panel("window", "C = (K-1) c", "neural collapse less the lowest f known"),),
    ),
    Row(
        id="certified",
        title="Theorem 1 for focal loss with a bias and at most 17 classes",
        section="Theorem 1, focal loss",
        paper="Theorem 1 holds for focal loss with a bias; here for 6 <= K <= 17, which its proof does not "
        "cover.",
        formulas=(
            r"\| y P + (1-y) P_G \| \le 1 , \quad 0 \le y \le 1",
            r"K f \ge \sum_{k \notin G} \left( h(p_k) + y C a_k \right) + \sum_{k \in G} v_y(p_k) \ge "
            r"K f_{\text{NC}}",
        ),
        measured="A dual bound over all sets G of classes covers every C = (K-1) c in finitely many "
        "intervals. Its parts are compared with a search and with f at random points. For K = 20 it has to "
        "stop.",
        known="holds",
        remark="The inequalities are evaluated in float64, with the margins in the table, at single values "
        "of gamma. For K >= 18 they hold up to just below the C at which a lower point exists.",
        jobs=_focal_window.certified,
    ),
    Row(
        id="window",
        title="Which simplexes lie below neural collapse",
        section="ours, beside Theorem 1",
        paper="Not in the paper: where Theorem 1 fails, a simplex of m classes is a minimum exactly where "
        "the contrast of the two groups of classes does not pull with more than sqrt(lam_W lam_H).",
        formulas=(
            r"\left| u^\top G u \right| \le \sqrt{\lambda_W \lambda_H} , \quad u \propto 1_m - \frac{m}{K} 1",
        ),
        measured="Every size m at K = 20: f and the gradient at the point itself, and the pull by autodiff.",
        known="holds",
        remark="The lowest is m = 18 at C = 1.20108. With more pull the state has one more part, of rank "
        "one.",
        jobs=_focal_window.window,
    ),
    Row(
        id="tie",
        title="The tie of focal loss's two minima may be left out",
        section="Appendix B, focal loss",
        paper="Two minimisers t* tie only at carefully chosen parameters, which can be omitted.",
        formulas=(r"\ell(0) = \ell(a) + C a , \quad \ell'(a) = -C",),
        measured="The tie by autodiff; and f at points of partial collapse off the tie, on both sides of it.",
        known="fails",
        remark="With a bias the parameters at which Theorem 1 fails are an open set around the tie.",
        jobs=_focal_loss.tie,
    ),
    Row(
        id="constants",
        title="The weight of the scalar problem",
        section="Appendix C.1, Figure 10",
        paper="phi(t) is minimised with the penalty K sqrt(n lam_W lam_H) |t|.",
        formulas=(
            r"\min_t \phi(t) + c \left| t \right| = \min_a \ell(a) + (K-1) c \left| a \right| , \quad "
            r"c = \sqrt{n \lambda_W \lambda_H}",
        ),
        measured="The minimum with either constant against the lowest f found by solving.",
        known="holds with a correction",
        correction="The weight is c for |t| and (K-1) c for the margin a = -t/(K-1). K c with t would put "
        "the threshold of cross-entropy at c = 1/K^2 instead of 1/K.",
        jobs=_scalar_problem.constants,
    ),
    Row(
        id="thresholds",
        title="Collapse for any penalties",
        section="Definition 1, Theorem 1",
        paper="The minimiser is a simplex ETF for any positive lam_W and lam_H.",
        formulas=(r"c < c_{\text{thr}} = \frac{-\ell'(0)}{K-1} = \frac{1}{K} \text{ (cross-entropy)}",),
        measured="The margin of solutions across the threshold against theory's.",
        known="holds with a correction",
        correction="Below the threshold only: 1/K for cross-entropy, (1 - alpha)/K for label smoothing, "
        "S(1/K)/(K-1) for focal loss. Above it the minimiser is W = 0, H = 0.",
        jobs=_scalar_problem.thresholds,
        panels=(Panel("margin", "c / c_thr", "margin a of the logits"),),
    ),
    Row(
        id="nuclear-norm",
        title="The penalties of W and H are a nuclear norm of Z = W H",
        section="Theorem 1, its proof",
        paper="Over all W and H with W H = Z the least penalty is the nuclear norm of Z, weighted by "
        "sqrt(lam_W lam_H).",
        formulas=(
            r"\min_{W H = Z} \frac{\lambda_W}{2} \|W\|^2 + \frac{\lambda_H}{2} \|H\|^2 = "
            r"\sqrt{\lambda_W \lambda_H} \|Z\|_\ast",
        ),
        measured="The balanced factors from the singular values of a random Z; the least penalty that L-BFGS "
        "finds without them; random factors, none of which is below.",
        known="holds",
        remark="For d >= rank Z.",
        jobs=_nuclear_norm.nuclear_norm,
    ),
    Row(
        id="lemma-1",
        title="A product is at most the sum of two powers",
        section="Lemma 1",
        paper="For 1/p + 1/q = 1, |a b| is at most |a|^p/p + |b|^q/q, with equality exactly where "
        "|a|^p = |b|^q.",
        formulas=(
            r"\left| a b \right| \le \frac{\left| a \right|^p}{p} + \frac{\left| b \right|^q}{q} , \quad "
            r"\frac{1}{p} + \frac{1}{q} = 1",
        ),
        measured="Both sides at random a, b and p, where the powers are equal, and where they nearly are.",
        known="holds",
        jobs=_lemmas.lemma_1,
    ),
    Row(
        id="lemma-2",
        title="A nuclear norm is at most the mean of two squared norms",
        section="Lemma 2",
        paper="For every alpha > 0 the nuclear norm of W H_i is at most (|W|^2 + alpha |H_i|^2)/(2 "
        "sqrt(alpha)).",
        formulas=(r"\|W H_i\|_\ast \le \frac{1}{2 \sqrt{\alpha}} \left( \|W\|^2 + \alpha \|H_i\|^2 \right)",),
        measured="Both sides at random W, H and alpha, also with d < K, and where W'W = alpha H H'.",
        known="holds",
        remark="Equality needs W'W = alpha H_i H_i', which some W and H with this product satisfy if d is at "
        "least its rank. Lemma 8 takes alpha = n lam_H/lam_W.",
        jobs=_lemmas.lemma_2,
    ),
    Row(
        id="lemma-3",
        title="Eigenvalues of a diagonal matrix plus one of rank one",
        section="Lemma 3, equation (12)",
        paper="They are separated by the entries of D, strictly; an entry that D has m times remains m - 1 "
        "times, and one with z_i = 0 remains.",
        formulas=(r"\prod_j (d_i - \lambda_j) = - \tau z_i^2 \prod_{j \ne i} (d_i - d_j)",),
        measured="Interlacing and the identity at random D, tau and z; the strict order where entries "
        "deflate.",
        known="holds with a correction",
        correction="Strict only for distinct entries and all z_i != 0 (case 1). After deflation the order is "
        "weak, and an entry that D has m times remains at least m - 1 times.",
        jobs=_lemmas.lemma_3,
    ),
    Row(
        id="lemma-4",
        title="When the centred diagonal matrix has equal singular values",
        section="Lemma 4",
        paper="For K >= 3, if the nonzero singular values of (I - 11'/K) diag(p) are equal, then all p_i "
        "have one modulus, or a single one is not zero.",
        formulas=(
            r"Z = \left( I - \frac{1}{K} 1 \, 1^\top \right) \text{diag}(p) , \quad Z Z^\top Z = s^2 Z",
        ),
        measured="The equation is solved from random starts; each solution is compared with the two "
        "families.",
        known="holds",
        remark="K >= 3 is essential: for K = 2 every p satisfies the assumption. One inequality of the "
        "paper's case list is false for m = 1, without consequence. The error is in the use that Lemma 8 "
        "makes of it.",
        jobs=_lemmas.lemma_4,
    ),
    Row(
        id="lemma-8",
        title="The lower bound in the proof of Theorem 1",
        section="Lemma 8, equation (33)",
        paper="Replacing the nuclear norm by |Z|_F^2 / sigma_max leaves a bound whose minimum is the value "
        "of neural collapse.",
        formulas=(
            r"\min_Z g(Z) + c \frac{\|Z\|_F^2}{\sigma_{\text{max}}(Z)} < f_{\text{NC}} \le "
            r"g(Z) + c \|Z\|_\ast",
            r"\|Z\|_\ast \ge \frac{1}{K} \sum_k \left| t_k \right|",
        ),
        measured="The intermediate bound is minimised for cross-entropy; the inequality that replaces it is "
        "tried on random Z.",
        known="holds with a correction",
        correction="The conclusion is true for convex losses, the step is not. With |Z|_* >= (1/K) sum_k "
        "|t_k| the proof needs neither Lemma 8 nor, where there is no bias, convexity.",
        jobs=_nuclear_norm.lemma_8,
        panels=(Panel("bound", "c = sqrt(n lam_W lam_H)", "value, cross-entropy, K = 3"),),
    ),
    Row(
        id="lemma-5",
        title="Balance of W and H",
        section="Lemma 5",
        paper="At every critical point lam_W W'W = lam_H H H'.",
        formulas=(r"\lambda_W W^\top W = \lambda_H H H^\top",),
        measured="The difference at every analytically known critical point, of every index.",
        known="holds",
        jobs=_theorem_2.lemma_5,
    ),
    Row(
        id="lemma-6",
        title="The equation of the features at critical points",
        section="Lemma 6",
        paper="At every critical point W' G_i = -lam_H H_i for each group i of one sample per class.",
        formulas=(r"W^\top G_i = - \lambda_H H_i",),
        measured="Each group at every analytically known critical point; elsewhere the two sides differ by "
        "the gradient of f in H, by central differences.",
        known="holds",
        remark="With G_i from the mean over all N samples. With the mean over the K samples of a group it "
        "would be off by the factor n.",
        jobs=_lemmas.lemma_6,
    ),
    Row(
        id="lemma-7",
        title="The bias at critical points",
        section="Lemma 7",
        paper="At every critical point b = tau 1.",
        formulas=(r"b = \tau 1",),
        measured="max b - min b at every analytically known critical point, with lam_b > 0.",
        known="fails",
        remark="At a frame of m < K classes the bias distinguishes the others. At global minimisers the "
        "statement is true, which is all that Theorem 1 needs.",
        jobs=_theorem_2.lemma_7,
    ),
    Row(
        id="lemma-9",
        title="Where the lower bound of Theorem 1 is attained",
        section="Lemma 9",
        paper="The bound is attained exactly where the rows of W have one norm and equal angles, their mean "
        "is zero, and h_{k,i} = sqrt(lam_W/(lam_H n)) w^k.",
        formulas=(r"\|w^k\|^2 = \sqrt{\frac{n \lambda_H}{\lambda_W}} \, a^\ast \, \frac{K-1}{K}",),
        measured="The conditions and f at the minimiser, and at twice its W and H, which meets all of them.",
        known="holds with a correction",
        correction="The conditions are necessary. They are sufficient together with the norm above, which "
        "they do not fix.",
        jobs=_lemmas.lemma_9,
    ),
    Row(
        id="theorem-2",
        title="Critical points are global minima or strict saddles",
        section="Theorem 2",
        paper="For a convex loss and d > K every critical point is a global minimum or a strict saddle.",
        formulas=(
            r"\lambda_{\text{min}} = \frac{\lambda_W + \lambda_H}{2} - "
            r"\sqrt{\frac{(\lambda_W - \lambda_H)^2}{4} + \|G\|^2}",
        ),
        measured="Every analytically known critical point (full grid: those a search finds as well): its "
        "index, its smallest eigenvalue against the formula, the direction of the proof, flat directions.",
        known="holds",
        remark="d >= K suffices, d >= K-1 for losses of logit differences. For d <= K-2 strict local minima "
        "exist (K = 5, d = 2).",
        jobs=_theorem_2.theorem_2,
    ),
    Row(
        id="global-minima",
        title="The gradient in the logits tells global minima from saddles",
        section="Theorem 2, its proof",
        paper="For a convex loss a critical point is a global minimum exactly where the spectral norm of the "
        "gradient G in the logits is at most sqrt(lam_W lam_H).",
        formulas=(r"\|G\| \le \sqrt{\lambda_W \lambda_H} \Leftrightarrow f = f^\ast",),
        measured="Every analytically known critical point: the norm of G, f against the closed-form minimum, "
        "and the smallest eigenvalue of the dense Hessian by autodiff.",
        known="holds",
        jobs=_theorem_2.global_minima,
    ),
    Row(
        id="corollary-1",
        title="Cross-entropy and label smoothing are convex in the logits",
        section="Corollary 1",
        paper="Hence both have a benign landscape.",
        formulas=(r"\nabla_z^2 L(z, k) \succeq 0",),
        measured="The smallest curvature of the loss at random logits, and Theorem 2 over critical points.",
        known="holds",
        jobs=_theorem_2.corollary_1,
    ),
    Row(
        id="corollary-2",
        title="Focal loss: benign where p_k >= 0.21, which contains the global minimiser",
        section="Corollary 2, Appendix D",
        paper="Within the region p_k > 0.21 focal loss is convex in the logits, and the global minimiser "
        "lies in it.",
        formulas=(r"\Omega = \{ p_k \ge p_{\text{min}}(\gamma) \} , \quad p_{\text{min}}(3) = 0.0575",),
        measured="Critical points inside the region; the target probability at the optimum.",
        known="holds with a correction",
        correction="The minimiser leaves p > 0.21 as (K-1) c grows (K = 10, c = 0.11: p = 0.17), and never "
        "the exact region p >= p_min(gamma).",
        jobs=_corollary_2.corollary_2,
    ),
    Row(
        id="region",
        title="The region in which focal loss is convex",
        section="Appendix D",
        paper="p_k >= 0.21 is sufficient, for every gamma.",
        formulas=(r"(1 + 2 \gamma)(1 - p) + \gamma (1 - (1 + \gamma) p) \log p = 0",),
        measured="The root p_min against autodiff; the sign of the smallest eigenvalue of Hessians in z on "
        "both sides of it.",
        known="holds",
        remark="Exact: convex if and only if p_k >= p_min(gamma), for any K and any other logits; at most "
        "0.0585. The paper's proof gives 0.2032, rounded up.",
        jobs=_corollary_2.region,
        panels=(Panel("region", "gamma", "target probability", xscale="log"),),
    ),
    Row(
        id="spurious-minima",
        title="Focal loss outside the region",
        section="after Corollary 2",
        paper="The landscape of focal loss is benign locally; nothing is claimed outside.",
        formulas=(r"C_{\text{thr}} = S(1/K) , \quad C_{\text{spin}} = S(p_{\text{min}})",),
        measured="Where random starts end for K = 20: well below C_thr, 0.02 % below it, and in the strip "
        "above it.",
        known="holds",
        remark="Up to 0.95 C_thr every start reaches the optimum. Just below C_thr many starts, and for "
        "C_thr < C < C_spin (K >= 18) up to all of them, end in strict local minima above the optimum.",
        jobs=_focal_loss.spurious,
        panels=(Panel("ends", "C = (K-1) c", "share of starts above the optimum"),),
    ),
    Row(
        id="spurious-begin",
        title="Where the spurious minima of focal loss begin",
        section="ours, after Corollary 2",
        paper="Not in the paper: with a free bias and K >= 18 a simplex of K - 1 classes is a strict local "
        "minimum from a C below C_thr on.",
        formulas=(
            r"S(p_{\text{on}}) = S(p_{\text{off}}) = C , \quad p_{\text{on}} = \frac{1}{1 + (K-1) e^{-a}} , "
            r"\quad p_{\text{off}} = \frac{1}{1 + (K-1) e^{a/(K-1)}}",
        ),
        measured="The root in a; f, its gradient and |G| at the point itself, by autodiff; both sides of it.",
        known="holds",
        remark="Without a bias there is none below C_thr in this family.",
        jobs=_focal_window.begin,
    ),
    Row(
        id="figure-9",
        title="phi of the losses",
        section="Figure 9",
        paper="The graphs of phi for cross-entropy, label smoothing and focal loss.",
        formulas=(r"\phi(t) = \ell(-t/(K-1)) , \quad \ell(a) = L(a e_k, k)",),
        measured="phi and its slope in closed form against the loss itself and autodiff.",
        known="holds",
        jobs=_scalar_problem.figure_9,
        panels=(Panel("phi", "t = sum of logit differences", "phi(t), K = 10"),),
        draw=contrastive.phi,
    ),
    Row(
        id="figure-10",
        title="The scalar problem and its minimiser",
        section="Figure 10",
        paper="phi(t) + c |t| has one minimum.",
        formulas=(r"a^\ast = \log \left( \frac{1}{c} - (K-1) \right) \text{ (cross-entropy)}",),
        measured="Minimiser and minimum in closed form against a search on the loss itself.",
        known="holds",
        jobs=_scalar_problem.figure_10,
        panels=(Panel("profile", "margin a", "l(a) + C a, K = 10, C/C_thr = 0.25, 1, 1.5"),),
        draw=contrastive.profiles,
    ),
    Row(
        id="critical-points",
        title="The table of critical points",
        section="Theorem 2",
        paper="Saddles and minima of the landscape.",
        formulas=(r"\text{index} = \text{number of negative eigenvalues of } \nabla^2 f",),
        measured="Objective, index and smallest eigenvalue of each against a dense Hessian by autodiff.",
        known="holds",
        jobs=_theorem_2.critical_points,
        panels=(Panel("points", "index", "objective f"),),
    ),
    Row(
        id="spectrum",
        title="The Hessian's spectrum at neural collapse",
        section="ours, beside Theorem 2",
        paper="Not in the paper: every eigenvalue at the optimum in closed form.",
        formulas=(
            r"\mu_\pm(\rho) = \frac{1}{2} \left( s(1+\rho) \pm "
            r"\sqrt{s^2 (1+\rho)^2 - 16 \rho \lambda_W \lambda_H} \right) , \quad s = \lambda_W + \lambda_H",
        ),
        measured="All eigenvalues with multiplicities against a dense Hessian by autodiff.",
        known="holds",
        jobs=_theorem_2.spectrum,
        panels=(Panel("spectrum", "eigenvalue number", "eigenvalue, cross-entropy"),),
    ),
    *(row for row in _section_4.rows() if row.part == "paper"),
)

#: The parts of the paper that no row measures, and why.
UNMEASURED: tuple[Unmeasured, ...] = (_section_4.UNMEASURED,)

#: The rows of both parts.
STATEMENTS: tuple[Row, ...] = (*PAPER, *BEYOND)


def chosen(only: tuple[str, ...], part: str = "all") -> tuple[Row, ...]:
    """The rows of these ids in the shelf's order; all rows of the part where none is given.

    Raises:
        ValueError: an id that the part does not have; the nearest is suggested.
    """
    rows = [row for row in STATEMENTS if part in ("all", row.part)]
    ids = {_checks.choice("only", name, [row.id for row in rows]) for name in only}
    return tuple(row for row in rows if not only or row.id in ids)
