"""Figures from records: their numbers against the records, what they lack in words, and the bridge's."""

import json

import jax
import numpy as np
import pytest

import ufm
from ufm import losses, theory
from ufm.deep import History, _last_layer, figures

LOSSES = tuple(figures.LOSSES)
ORDER = (*LOSSES, "poly1")


def accuracy(loss, width, epochs, seed):
    return 0.9 + 0.01 * ORDER.index(loss) + 0.002 * width + 1e-5 * epochs + 0.001 * seed


def nc1(loss, width, epochs, seed):
    return (1 + ORDER.index(loss) + 0.1 * seed) / (width * epochs) ** 2


def write(folder, loss, width, epochs, seed, *, data="cifar10", net="wrn50", status="completed", **config):
    """A run's record with numbers that are a formula of what the run is."""
    at = np.linspace(epochs // 4, epochs, 4).astype(int).tolist()
    history = {name: [0.5] * len(at) for name in History._fields}
    history |= {"epoch": at, "validation_accuracy": [None] * len(at)}
    history["test_accuracy"] = [accuracy(loss, width, epochs, seed) - 0.1 * (at[-1] > e) for e in at]
    history["nc1"] = [nc1(loss, width, epochs, seed) * (at[-1] / e) for e in at]
    fixed = {"preset": "paper", "weight_decay": 5e-4, "max_train": None}
    own = {"loss": loss, "width": width, "epochs": epochs, "seed": seed, "data": data, "net": net}
    own |= fixed | config
    folder.mkdir(exist_ok=True)
    name = "-".join(map(str, (data, net, loss, width, epochs, seed, *config.values())))
    record = {"config": own, "status": status, "history": history}
    (folder / f"{name}.json").write_text(json.dumps(record))


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.fixture
def grid(tmp_path):
    """The paper's grid with two seeds, without one cell of one loss."""
    for loss in LOSSES:
        for width in figures.WIDTHS:
            for epochs in figures.EPOCHS:
                for seed in range(2):
                    if (loss, width, epochs) != ("fl", 0.5, 400):
                        write(tmp_path / "runs", loss, width, epochs, seed)
    return figures.records(tmp_path / "runs")


def number(drawing, name):
    (found,) = [n for n in drawing.numbers if n.name == name]
    return found


def test_the_maps_hold_mean_and_spread_over_the_seeds_and_name_what_is_missing(grid):
    drawing = figures.draw(3, grid)
    found = number(drawing, "LS, width 0.5, 200 epochs")
    values = [accuracy("ls", 0.5, 200, seed) for seed in range(2)]
    assert found.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert found.spread == pytest.approx(np.std(values, ddof=1), rel=1e-10)
    assert found.seeds == 2
    assert drawing.missing == ("FL, width 0.5, 400 epochs",)
    assert drawing.runs == 126
    assert "missing: FL, width 0.5, 400 epochs" in words(drawing.figure)
    assert f"{100 * np.mean(values):.2f}" in words(drawing.figure)


def test_the_papers_numbers_stand_beside_ours(grid):
    drawing = figures.draw(3, grid)
    small = number(drawing, "largest difference between losses, width 0.25, 100 epochs")
    assert (small.mean, small.paper) == (pytest.approx(0.03), 0.01037)
    large = number(drawing, "largest difference between losses, width 2, 800 epochs")
    assert large.paper == 0.0036
    assert "paper 0.01037" in words(drawing.figure)
    ratio = number(figures.draw(4, grid), "NC1 at width 0.25, 100 epochs over NC1 at width 2, 800 epochs")
    assert (ratio.mean, ratio.paper) == (pytest.approx((2 * 800 / 25) ** 2), 1000)


def test_a_difference_between_losses_needs_all_of_them(tmp_path):
    for loss in LOSSES[:3]:
        write(tmp_path, loss, 0.25, 100, 0)
    drawing = figures.draw(3, figures.records(tmp_path))
    assert number(drawing, "largest difference between losses, width 0.25, 100 epochs").mean is None
    assert len(drawing.missing) == 64 - 3
    assert "and 55 more" in words(drawing.figure)


def test_the_evolution_is_the_mean_between_the_extremes(tmp_path):
    for loss in ("ce", "mse"):
        for seed in range(3):
            write(tmp_path, loss, 1.0, 100, seed)
    drawing = figures.draw(1, figures.records(tmp_path))
    line = drawing.figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [25, 50, 75, 100])
    expected = np.mean([nc1("ce", 1.0, 100, seed) for seed in range(3)]) * 100 / np.array([25, 50, 75, 100])
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    (band, _) = drawing.figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    low, high = (nc1("ce", 1.0, 100, seed) for seed in (0, 2))
    assert (heights.min(), heights.max()) == (pytest.approx(low), pytest.approx(4 * high))
    assert drawing.runs == 6
    assert drawing.missing == ("LS at width 1, 100 epochs", "FL at width 1, 100 epochs")
    assert (
        number(figures.draw(2, figures.records(tmp_path)), "train accuracy, CE, width 1, 100 epochs").paper
        == 1.0
    )


@pytest.mark.parametrize("measured", [False, True])
def test_what_no_run_has_measured_has_no_panel(measured, tmp_path):
    """The figure shows the cell of most runs, so the validation accuracies of another one do not count."""
    for loss, width in (("ce", 1), ("ls", 1), ("ce", 2)):
        write(tmp_path / "runs", loss, width, 100, 0)
    for file in (tmp_path / "runs").iterdir():
        record = json.loads(file.read_text())
        if measured or record["config"]["width"] == 2:
            record["history"]["validation_accuracy"] = [None, 0.8, None, 0.9]
        file.write_text(json.dumps(record))
    axes = figures.draw(2, figures.records(tmp_path / "runs")).figure.axes
    middle = ["validation accuracy"] if measured else []
    assert [ax.get_ylabel() for ax in axes] == ["train accuracy", *middle, "test accuracy"]
    assert all(ax.lines for ax in axes)


def test_a_run_that_has_just_begun_leaves_the_panels_empty(tmp_path):
    write(tmp_path / "runs", "ce", 1, 100, 0, status="interrupted")
    (file,) = (tmp_path / "runs").iterdir()
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"history": {name: [] for name in record["history"]}}))
    axes = figures.draw(2, figures.records(tmp_path / "runs")).figure.axes
    assert len(axes) == 3
    assert not any(ax.lines for ax in axes)


def test_an_interrupted_run_is_in_the_evolution_and_not_in_the_maps(tmp_path):
    write(tmp_path, "ce", 0.25, 100, 0, status="running")
    runs = figures.records(tmp_path)
    assert number(figures.draw(1, runs), "NC1, CE, width 0.25, 100 epochs").seeds == 1
    assert number(figures.draw(3, runs), "CE, width 0.25, 100 epochs").mean is None


def test_runs_of_different_settings_are_never_mixed(tmp_path):
    for seed in range(3):
        write(tmp_path, "ce", 1.0, 100, seed)
    write(tmp_path, "ce", 1.0, 100, 7, weight_decay=1e-3)
    write(tmp_path, "ce", 1.0, 100, 8, data="cifar100")
    write(tmp_path, "ce", 1.0, 100, 9, net="wrn18")
    drawing = figures.draw(3, figures.records(tmp_path))
    assert number(drawing, "CE, width 1, 100 epochs").seeds == 3
    assert "2 runs of other settings are not drawn" in words(drawing.figure)


def test_a_version_of_the_papers_data_is_drawn_under_its_own_name(tmp_path):
    write(tmp_path, "ce", 1.0, 100, 0, data="cifar10-jpeg")
    drawing = figures.draw(3, figures.records(tmp_path))
    assert drawing.runs == 1
    assert "wrn50 on cifar10-jpeg" in words(drawing.figure)
    assert figures.draw(6, figures.records(tmp_path)).runs == 0


def test_the_same_run_twice_counts_once(tmp_path):
    write(tmp_path / "a", "ce", 1.0, 100, 0)
    write(tmp_path / "b", "ce", 1.0, 100, 0)
    drawing = figures.draw(3, figures.records(tmp_path / "a", tmp_path / "b"))
    assert number(drawing, "CE, width 1, 100 epochs").seeds == 1


def test_miniimagenet_beside_the_papers_accuracies(tmp_path):
    for loss in LOSSES:
        write(tmp_path, loss, 2.0, 800, 0, data="miniimagenet", net="wrn18")
    drawing = figures.draw(8, figures.records(tmp_path))
    assert number(drawing, "LS, width 2, 800 epochs").paper == 0.8020
    assert number(drawing, "MSE, width 0.25, 100 epochs") == (
        "MSE, width 0.25, 100 epochs",
        None,
        None,
        0,
        0.6915,
    )
    assert len(drawing.missing) == 4


def test_another_data_set_is_drawn_alike_and_not_beside_the_paper(tmp_path):
    for width in (0.5, 3.0):
        write(tmp_path, "ce", width, 5, 0, data="digits", net="mlp")
    drawing = figures.draw(3, figures.records(tmp_path), data="digits")
    assert all(n.paper is None for n in drawing.numbers)
    assert "digits\nmlp on digits" in words(drawing.figure)
    assert {n.name for n in drawing.numbers if n.mean is not None} == {
        "CE, width 0.5, 5 epochs", "CE, width 3, 5 epochs"
    }  # fmt: skip


def test_a_loss_of_ones_own_has_a_line_beside_the_others(tmp_path):
    for loss in ("ls", "poly1"):
        write(tmp_path, loss, 1.0, 5, 0, data="digits", net="mlp")
    drawing = figures.draw(1, figures.records(tmp_path), data="digits")
    assert [line.get_label() for line in drawing.figure.axes[0].lines] == ["LS", "poly1"]
    assert (drawing.runs, drawing.missing) == (2, ())
    assert any(n.name.startswith("NC1, poly1") and n.mean is not None for n in drawing.numbers)


@pytest.mark.parametrize("which", [n for n, kind in figures.FIGURES.items() if kind.data is not None])
def test_without_runs_a_figure_says_what_to_run(which):
    drawing = figures.draw(which)
    kind = figures.FIGURES[which]
    assert f"no run of {kind.data} found" in words(drawing.figure)
    assert f"--net {kind.net}" in words(drawing.figure)
    assert drawing.missing
    json.dumps(drawing.to_dict(), allow_nan=False)


@pytest.mark.parametrize("which", [n for n, kind in figures.FIGURES.items() if kind.data is not None])
def test_every_figure_is_drawn_from_one_run(which, tmp_path):
    kind = figures.FIGURES[which]
    write(tmp_path, "ls", 0.25, 100, 0, data=kind.data, net=kind.net)
    drawing = figures.draw(which, figures.records(tmp_path))
    drawing.figure.savefig(tmp_path / "figure.png")
    assert drawing.runs == 1
    assert "LS" in words(drawing.figure)
    json.dumps(drawing.to_dict(), allow_nan=False)


def test_the_scalar_problems_minima_lie_on_their_curves():
    figure = figures.draw(10).figure
    for ax, loss in zip(figure.axes, LOSSES, strict=True):
        curves, dots = ax.lines[::2], ax.lines[1::2]
        assert len(curves) == len(dots) == 3
        for curve, dot, factor in zip(curves, dots, (0.25, 1.0, 1.5), strict=True):
            a, f = dot.get_xdata()[0], dot.get_ydata()[0]
            prob = ufm.Problem.balanced(loss, K=10, d=10, n=1)
            C = factor * theory.threshold(prob).C_thr
            value = float(theory.scalar_profile(loss, 10).value(a)) + C * abs(a)
            assert f == pytest.approx(value, rel=1e-9)
            assert f <= curve.get_ydata().min() + 1e-9
        assert [dot.get_xdata()[0] > 1e-6 for dot in dots] == [
            True,
            False,
            False,
        ]  # at the threshold: rounding


def test_phi_is_the_loss_at_equal_non_targets():
    figure = figures.draw(9).figure
    lines = {line.get_label().split(":")[0]: line for ax in figure.axes for line in ax.lines[:3]}
    for name in ("ce", "ls", "fl"):
        line = lines[figures.LOSSES[name][0]]
        t, value = line.get_xdata()[50], line.get_ydata()[50]
        z = np.where(np.arange(10) == 4, -t / 9, 0.0)
        assert value == pytest.approx(float(losses.get(name)(jax.numpy.asarray(z), 4)), rel=1e-9)


def test_what_is_no_record_is_passed_over_and_named_where_it_is_asked_for(tmp_path):
    write(tmp_path, "ce", 1.0, 100, 0)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"config": {}, "history": [], "status": 1}')
    assert len(figures.records(tmp_path)) == 1
    with pytest.raises(ValueError, match=r"expected the record of a run, got .*broken\.json"):
        figures.records(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="no such place"):
        figures.records(tmp_path / "absent")


@pytest.mark.parametrize("which", [0, 11, "3"])
def test_an_unknown_figure_is_refused(which):
    with pytest.raises(ValueError, match="figure: expected one of 1, 2"):
        figures.draw(which)


def test_theory_has_no_data():
    with pytest.raises(ValueError, match="data: expected with a figure of training"):
        figures.draw(9, data="digits")


# --- the bridge -----------------------------------------------------------------------------------


def layer(loss="ce", counts=(5, 8, 3, 6), seed=0, scale=1.0):
    """A random last layer with unequal classes, in any order."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    K, d = len(counts), 7
    X = scale * (rng.normal(size=(y.size, d)) + 2 * rng.normal(size=(K, d))[y])
    return X, y, scale * rng.normal(size=(K, d)), rng.normal(size=K), losses.get(loss)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_no_layer_is_below_the_optimum_whatever_its_class_sizes(loss, seed):
    for scale in (0.05, 0.3, 1.0):
        found = _last_layer.compare(*layer(loss, seed=seed, scale=scale), lam_W=2e-3, lam_b=5e-4)
        assert found.gap >= -1e-12


def test_a_layer_made_for_unequal_classes_is_not_below_the_optimum():
    """With each sample of the same weight its objective is below the balanced problem's minimum."""
    labels = np.repeat(np.arange(4), (14, 2, 2, 2))
    prob = ufm.Problem("ce", labels, K=4, d=6, lam_W=5e-2, lam_H=2e-2)
    sol = ufm.solve(prob, ufm.init(prob))
    H, W = np.asarray(sol.H).T, np.asarray(sol.W)
    found = _last_layer.compare(H, labels, W, sol.b, prob.loss, lam_W=5e-2, lam_b=0.0)
    fit = np.mean([prob.loss(jax.numpy.asarray(W @ h + sol.b), k) for h, k in zip(H, labels, strict=True)])
    assert fit + 5e-2 * np.sum(W**2) < found.optimum  # lam_H |H|^2 = lam_W |W|^2
    assert found.gap > 0


def test_the_effective_penalty_balances_the_norms():
    """Lemma 5's trace, with the classes weighted: computed by repeating samples until classes are equal."""
    X, y, W, b, loss = layer(counts=(2, 3, 6))
    times = np.array([3, 2, 1])[y]
    even, labels = np.repeat(X, times, axis=0), np.repeat(y, times)
    found, equal = (
        _last_layer.compare(x, k, W, b, loss, lam_W=2e-3, lam_b=1e-3) for x, k in ((X, y), (even, labels))
    )
    H = even - even.mean(axis=0)
    assert equal.lam_H == pytest.approx(2e-3 * np.sum(W**2) / np.sum(H**2), rel=1e-12)
    assert found.objective == pytest.approx(equal.objective, rel=1e-12)
    assert found.lam_H * len(X) == pytest.approx(equal.lam_H * len(even), rel=1e-12)
    assert found.optimum == pytest.approx(equal.optimum, rel=1e-12)
    prob = ufm.Problem(loss, labels, K=3, d=7, lam_W=2e-3, lam_H=equal.lam_H, lam_b=1e-3)
    params = ufm.Params(*map(jax.numpy.asarray, (W, H.T, b + W @ even.mean(axis=0))))
    assert equal.objective == pytest.approx(float(prob(params)), rel=1e-12)
    assert equal.optimum == pytest.approx(theory.global_optimum(prob).objective, rel=1e-12)


def test_angles_are_those_of_classifier_and_centred_means():
    X, y, W, b, loss = layer()
    found = _last_layer.compare(X, y, W, b, loss, lam_W=2e-3, lam_b=0.0)
    means = np.stack([X[y == k].mean(axis=0) for k in range(4)])
    m = means - means.mean(axis=0)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (W, m)]
    assert found.alignment == pytest.approx(np.mean(np.sum(unit[0] * unit[1], axis=1)), rel=1e-12)
    pairs = [unit[1][i] @ unit[1][j] for i in range(4) for j in range(i)]
    assert found.angle == pytest.approx(np.mean(pairs), rel=1e-12)
    assert found.angle_spread == pytest.approx(np.std(pairs), rel=1e-12)
    Z = X @ W.T + b
    others = (Z.sum(axis=1) - Z[np.arange(y.size), y]) / 3
    np.testing.assert_allclose(found.margins, Z[np.arange(y.size), y] - others, rtol=1e-12)


def test_norms_beside_the_optimums():
    prob = ufm.Problem.balanced("ce", K=4, d=6, n=5, lam_W=3e-3, lam_H=7e-4)
    W, H, b = (np.asarray(x) for x in theory.global_optimum(prob).params)
    found = _last_layer.compare(H.T, np.asarray(prob.labels), W, b, prob.loss, lam_W=3e-3, lam_b=0.0)
    assert found.norm_W == pytest.approx(found.optimal_norm_W, rel=1e-9)
    assert found.norm_M == pytest.approx(found.optimal_norm_M, rel=1e-9)
    assert found.alignment == pytest.approx(1, abs=1e-12)
    assert found.within == pytest.approx(0, abs=1e-9)
    twice = _last_layer.compare(H.T, np.asarray(prob.labels), 2 * W, b, prob.loss, lam_W=3e-3, lam_b=0.0)
    assert twice.norm_W == pytest.approx(2 * found.norm_W)
    assert twice.lam_H == pytest.approx(4 * found.lam_H)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_comparison_is_drawn_and_told():
    found = _last_layer.compare(*layer("ls"), lam_W=2e-3, lam_b=0.0)
    assert "UFM's optimum" in words(found.plot())
    assert f"{found.margin:.3g}" in words(found.plot())
    assert "above the optimum" in repr(found)
    assert "<table>" in found._repr_html_()


def test_past_the_threshold_there_is_no_direction_to_compare_with():
    found = _last_layer.compare(*layer("ce"), lam_W=0.5, lam_b=0.0)
    assert (found.optimal_margin, found.optimal_alignment) == (0.0, None)
    assert "trivial" in repr(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam_W": 0.0}, "lam_W: expected a finite number > 0"),
        ({"labels": "empty"}, "labels: expected every class 0..3, got none of class 2"),
        ({"features": "equal"}, "features: expected class means that differ"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    X, y, W, b, loss = layer()
    y = np.where(y == 2, 0, y) if "labels" in change else y
    X = np.ones_like(X) if "features" in change else X
    with pytest.raises(ValueError, match=message):
        _last_layer.compare(X, y, W, b, loss, lam_W=change.get("lam_W", 1e-3), lam_b=0.0)
