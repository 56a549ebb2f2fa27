"""SHELF of statements that `verify` measures at a solution: Theorems 1 and 2 (Zhou et al. 2022).

A statement is one row of `STATEMENTS`, or of `UNEQUAL` where it is about unequal class counts: what is
measured, how far rounding and the solver's tolerance may move it, and what it assumes. Adding one is adding a
row.
"""

from __future__ import annotations

from ufm._claim import Statement
from ufm._problem import Problem
from ufm.claims import _layers, _measures, _nonnegative
from ufm.claims._measures import Facts as Facts
from ufm.claims._rows import Row as _Statement
from ufm.claims._rows import failure
from ufm.claims._spheres import SPHERES as SPHERES

# --- what it assumes: each returns the reason why not, or "" --------------------------------------


def _free(f: Facts) -> str:
    return "" if f.prob.model.bilinear else f"about two free factors, not the model {f.prob.model!r}"


def _own_features(f: Facts) -> str:
    """Features and bias are variables, penalised as in equation (7)."""
    return "" if f.chain or f.prob.model.convex else f"not about the model {f.prob.model!r}"


def _own_bias_term(f: Facts) -> str:
    return _own_features(f) or ("" if f.prob.bias else "the problem has no bias")


def _active(f: Facts) -> str:
    return _free(f) or _not_zero(f)


def _chained(f: Facts) -> str:
    return _not_zero(f) if f.chain else f"about a product of free factors, not the model {f.prob.model!r}"


def _not_zero(f: Facts) -> str:
    noise = 1e-6 + 100 * f.distance
    return "" if f.row_norm > noise else "Z = W H is zero up to the solver's tolerance: no active direction"


def _has_bias(f: Facts) -> str:
    return _free(f) or ("" if f.prob.bias else "the problem has no bias")


def _has_optimum(f: Facts) -> str:
    best = f.optimum
    if best is None or f.prob.model.bilinear or best.proved != "upper bound":
        return f.no_optimum
    above = f.objective - best.objective
    near = abs(above) <= _measures.tol_objective(f)
    here = "f is that" if near else f"f is {abs(above):.3e} {'above' if above > 0 else 'below'} that"
    return f"f* is only known to be at most {best.objective:.15g}, {best.structure}; {here}"


def _dual_bound(f: Facts) -> str:
    cert = f.certificate
    if cert.is_global:
        return ""
    if not (f.prob.model.bilinear or f.prob.model.convex):
        return str(cert.why)
    if not f.prob.loss.convex:
        return f"not a convex loss, and {cert.why}"
    rank = f.prob.full_rank
    return f"d = {f.prob.d} < {rank}: {cert.why}" if f.prob.d < rank else ""


def _balanced(f: Facts) -> str:
    if f.prob.n is not None:
        return ""
    return f"Theorem 1 assumes equally many samples in every class and no weights, got {f.prob.unequal}"


def _theorem(f: Facts) -> str:
    """The assumptions of Theorem 1's structure."""
    return _free(f) or _balanced(f) or _structured(f)


def _structured(f: Facts) -> str:
    """Why the structure of the optimum is not known, or is zero."""
    if _free(f):
        return _free(f)
    if f.optimum is None:
        return f.no_optimum
    if f.prob.d < f.prob.K:
        return f"Theorem 1 assumes d >= K, got d={f.prob.d} < K={f.prob.K}"
    if f.optimum.regime == "trivial":
        return (
            f"over-regularised: c = sqrt(n lam_W lam_H) = {f.optimum.setting.c:.6g} is past the threshold, "
            "the global optimum is W = 0, H = 0"
        )
    return ""


def _collapses(f: Facts) -> str:
    """NC1 holds at every critical point of a convex loss, whatever counts and d."""
    if not f.prob.collapses and not _free(f):
        return f"{f.prob.loss!r} is not declared convex: features of a class may differ at a critical point"
    return _active(f) or _critical(f)


def _free_bias(f: Facts) -> str:
    if _has_bias(f):
        return _has_bias(f)
    if f.lam_b != 0:
        return f"the bias is penalised, lam_b = {f.lam_b:g}: sum_k n_k h_k = (lam_b/lam_H) W'b then"
    return _active(f) or _critical(f)


def _has_groups(f: Facts) -> str:
    why = _structured(f)
    return why or (
        "" if f.groups else "no two classes are of equal count and weight: each is a group of its own"
    )


def _has_two_groups(f: Facts) -> str:
    why = _has_groups(f)
    return why or ("" if len(f.groups) > 1 else "only one group has several classes")


def _has_gain(f: Facts) -> str:
    if _has_groups(f):
        return _has_groups(f)
    return "" if f.gains is not None else f"about cross-entropy and label smoothing, not {f.prob.loss!r}"


def _etf_theorem(f: Facts) -> str:
    why = _theorem(f)
    if why or f.best.mean_eigenvalue == 0:
        return why
    return (
        f"the optimum of this loss is no ETF: {f.best.structure}; a loss that is not a function of logit "
        "differences has it only where the bias takes up the mean"
    )


def _bias_zero_theorem(f: Facts) -> str:
    why = _has_bias(f) or _theorem(f)
    if why:
        return why
    if f.best.bias != 0:
        return f"the optimal bias of this loss is b = {f.best.bias:.6g}, not 0 (measured in its own row)"
    if f.lam_b == 0:
        return (
            "lam_b = 0: the loss does not see a common shift of b, a flat direction of f; "
            f"here b = {f.b.mean():.6g} 1"
        )
    return ""


def _own_structure(f: Facts) -> str:
    why = _theorem(f)
    return why or ("" if not f.prob.loss.shift_invariant else "the ETF statements above are this loss's own")


def _own_bias(f: Facts) -> str:
    return _has_bias(f) or _own_structure(f)


def _critical(f: Facts) -> str:
    if f.grad_norm <= 10 * _measures.tol_gradient(f):
        return ""
    return f"no critical point: |grad f| = {f.grad_norm:.1e}"


def _theorem_2(f: Facts) -> str:
    if _free(f):
        return _free(f)
    full = f.prob.full_rank
    if f.prob.d < full:
        return f"d = {f.prob.d} < {full}: spurious minima may exist"
    return f.no_optimum or _critical(f)


def _region(f: Facts) -> str:
    region = f.prob.loss.region()
    if region is None or region.paper is None:
        return "about focal loss"
    if _free(f):
        return _free(f)
    if f.optimum is not None and f.optimum.regime == "trivial":
        return "past the threshold p_k = 1/K"
    return _critical(f)


def _trivial(f: Facts) -> str:
    if _free(f):
        return _free(f)
    if f.optimum is None:
        return f.no_optimum
    return "" if f.optimum.regime == "trivial" else "the penalties are below the threshold"


# --- the table ------------------------------------------------------------------------------------


def _lower_bound(f: Facts) -> str:
    return str(f.certificate.method)


def _optimum(f: Facts) -> str:
    return f"f* = {f.best.objective:.15g}: {f.best.structure} ({f.best.theorem}; {f.best.proved})"


def _geometry(f: Facts) -> str:
    return "; ".join(f.geometry.lines())


def _uncertified(f: Facts, tolerance: float) -> str:
    return str(f.certificate.why) if f.sol.converged else failure(f, tolerance)


#: Theorem 1 of Zhou et al. 2022 (with its Lemmas 5 and 7), statement by statement.
STATEMENTS = (
    _Statement("stationary_W", "G H' + lam_W W = 0", _measures.stationary_W, _measures.tol_gradient, _free),
    _Statement(
        "stationary_H", "W' G + lam_H H = 0", _measures.stationary_H, _measures.tol_gradient, _own_features
    ),
    _Statement(
        "stationary_b", "G 1 + lam_b b = 0", _measures.stationary_b, _measures.tol_gradient, _own_bias_term
    ),
    _Statement(
        "singular_pairs",
        "G V = -lam U and U' G = -lam V' where Z = U S V'",
        _measures.singular_pairs,
        _measures.tol_pairs,
        _active,
    ),
    _Statement(
        "balance",
        "adjacent factors: lam_W W'W = lam_H H H' (Lemma 5)",
        _measures.balance,
        _measures.tol_balance,
        _chained,
    ),
    _Statement(
        "objective",
        "f equals the global minimum f*",
        _measures.objective,
        _measures.tol_objective,
        _has_optimum,
        _optimum,
    ),
    _Statement(
        "certificate",
        "nothing lower exists: f - f* <= gap",
        _measures.certificate,
        _measures.tol_certificate,
        _dual_bound,
        _lower_bound,
        failure=_uncertified,
    ),
    _Statement(
        "row_norms", "|w^1| = ... = |w^K|", _measures.row_norms, _measures.tol_structure, _etf_theorem
    ),
    _Statement(
        "self_duality",
        "h_{k,i} = sqrt(lam_W/(lam_H n)) w^k for all k, i",
        _measures.self_duality,
        _measures.tol_structure,
        _etf_theorem,
    ),
    _Statement(
        "zero_mean",
        "the columns of each H_i have mean zero",
        _measures.round_means,
        _measures.tol_structure,
        _etf_theorem,
    ),
    _Statement("etf", "W W' is a simplex ETF", _measures.etf, _measures.tol_structure, _etf_theorem),
    _Statement(
        "logits", "W H + b 1' is the optimum's", _measures.class_logits, _measures.tol_structure, _structured
    ),
    _Statement(
        "bias_constant",
        "b = b 1",
        _measures.bias_constant,
        _measures.tol_structure,
        lambda f: _has_bias(f) or _theorem(f),
    ),
    _Statement(
        "bias_zero", "b = 0 where lam_b > 0", _measures.bias_zero, _measures.tol_structure, _bias_zero_theorem
    ),
    _Statement(
        "own_frame",
        "W W' = sqrt(n lam_H/lam_W) (|a| (I - 11'/K) + |m| 11'/K)",
        _measures.frame,
        _measures.tol_structure,
        _own_structure,
    ),
    _Statement(
        "own_bias", "b = b0 1 with theory's b0", _measures.bias_value, _measures.tol_structure, _own_bias
    ),
    _Statement("trivial", "W = 0 and H = 0 past the threshold", _measures.zero, _measures.tol_zero, _trivial),
    # Theorem 2 and Corollary 2 at one point; `ufm.landscape.theorems` measures them over many
    _Statement(
        "second_order",
        "the Hessian has no negative eigenvalue",
        _measures.negative_curvature,
        _measures.tol_curvature,
        _critical,
    ),
    _Statement(
        "theorem_2",
        "a global minimum or a strict saddle (else f - f*)",
        _measures.neither,
        _measures.tol_objective,
        _theorem_2,
    ),
    _Statement(
        "corollary_2",
        "p_k >= p_min, where focal loss is convex",
        _measures.outside_region,
        _measures.no_tolerance,
        _region,
    ),
)

#: What unequal class counts, or class weights, leave of it; measured there beside the others
#: (docs/theory.md, section 1.7).
UNEQUAL = (
    _Statement(
        "within_class",
        "the features of a class coincide (NC1), at every critical point",
        _measures.within_class,
        _measures.tol_within_class,
        _collapses,
    ),
    _Statement(
        "sample_mean",
        "sum_k n_k h_k = 0 where the bias is free",
        _measures.sample_mean,
        _measures.tol_sample_mean,
        _free_bias,
    ),
    _Statement(
        "group_etf",
        "classes of equal count n and weight: W less its mean over them is a simplex ETF, "
        "W W' = sqrt(n lam_H/lam_W) alpha (I - 11'/K_g)",
        _measures.group_etf,
        _measures.tol_structure,
        _has_groups,
    ),
    _Statement(
        "group_duality",
        "classes of equal count n and weight, less their mean: w^k = sqrt(n lam_H/lam_W) h_k",
        _measures.group_duality,
        _measures.tol_structure,
        _has_groups,
    ),
    _Statement(
        "groups_orthogonal",
        "the ETFs of two groups are orthogonal",
        _measures.groups_orthogonal,
        _measures.tol_structure,
        _has_two_groups,
    ),
    _Statement(
        "group_gain",
        "classes of a group: p_target - p_other = max(0, s - N lam/(w sqrt(n))), s = 1 - alpha",
        _measures.group_gain,
        _measures.tol_probabilities,
        _has_gain,
    ),
    _Statement(
        "group_geometry",
        "norms and angles: W W' and the Gram matrix of the class means are the optimum's",
        _measures.group_geometry,
        _measures.tol_structure,
        _structured,
        _geometry,
    ),
)


#: What holds at every critical point of several layers (docs/theory.md, section 6.2); the last at minima.
LAYERS = (
    _Statement(
        "schatten",
        "the factors cost (q/2) lam sum sigma(W H)^(2/q), the least of all with their product",
        _layers.schatten,
        _layers.tolerance,
        _layers.nonzero,
    ),
    _Statement(
        "layer_pairs",
        "G V S^(1-2/q) = -lam U and U' G S^(1-2/q) = -lam V', W H = U S V', lam^q = lam_H lam_1 ... lam_M",
        _layers.pairs,
        _layers.tolerance,
        _layers.nonzero,
    ),
    _Statement(
        "null_directions",
        "lam_j is an eigenvalue of the Hessian: no escape through what the neighbours of a layer leave out",
        _layers.null_directions,
        _layers.tolerance,
        _layers.has_null_directions,
    ),
    _Statement(
        "zero_modes",
        "the only zero eigenvalues are those of the rotations between layers and of a free bias",
        _layers.zero_modes,
        _measures.no_tolerance,
        _layers.isolated,
    ),
)


#: what holds where H >= 0
NON_NEGATIVE = (
    _Statement("kkt_W", "G H' + lam_W W = 0", _nonnegative.stationary_W, _measures.tol_gradient),
    _Statement(
        "kkt_H",
        "W'G + lam_H H >= 0, H >= 0, and one of the two is 0 in each entry",
        _nonnegative.complementary,
        _measures.tol_gradient,
    ),
    _Statement(
        "kkt_b", "G 1 + lam_b b = 0", _nonnegative.stationary_b, _measures.tol_gradient, _nonnegative.has_bias
    ),
    _Statement(
        "neuron_balance",
        "each neuron: lam_W |W e_i|^2 = lam_H |row i of H|^2",
        _nonnegative.neuron_balance,
        _nonnegative.tol_balance,
        _nonnegative.nonzero,
    ),
    _Statement(
        "collapse",
        "the features of a class coincide (NC1), for all counts and every d",
        _measures.within_class,
        _measures.tol_within_class,
        _nonnegative.collapses,
    ),
    _Statement(
        "class_logits",
        "W H + b 1' is the optimum's",
        _measures.class_logits,
        _measures.tol_structure,
        _nonnegative.known,
    ),
    _Statement(
        "orthogonal_means",
        "the class means are orthogonal",
        _nonnegative.orthogonal_means,
        _measures.tol_structure,
        _nonnegative.orthogonal,
    ),
    _Statement(
        "centred_etf",
        "W, and the class means less their mean, are simplex ETFs (NC2 with centring)",
        _nonnegative.simplex_etf,
        _measures.tol_structure,
        _nonnegative.simplex,
    ),
    _Statement(
        "centred_duality",
        "w^k is parallel to h_k less the mean of all classes (NC3 with centring)",
        _nonnegative.centred_duality,
        _measures.tol_structure,
        _nonnegative.simplex,
    ),
)


def statements(prob: Problem) -> tuple[Statement[Facts], ...]:
    """The rows that are measured at a solution of a problem."""
    unequal, layers = UNEQUAL if prob.n is None else (), LAYERS if prob.model.layered else ()
    bounds = NON_NEGATIVE if prob.model.two_factors and prob.model.constrained else ()
    spheres = SPHERES if prob.model.curved else ()
    return (*STATEMENTS, *unequal, *layers, *bounds, *spheres)
