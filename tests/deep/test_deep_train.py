"""Training against PyTorch's optimiser, the schedule's golden epochs, and metrics on dumped features."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import deep, losses, metrics
from ufm.deep import _config, _feed, _measure, _packing, _plan, _step, augment, layers, nets, presets
from ufm.deep.datasets import Dataset

K, SHAPE = 3, (6, 6, 2)


def tiny(train=90, test=30, seed=0, name="tiny", **facts):
    """Images whose class is the half that is bright, with noise; three classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, train + test, p=[0.5, 0.3, 0.2]).astype(np.int32)
    images = rng.integers(0, 120, (train + test, *SHAPE))
    images[labels == 1, :3] += 100
    images[labels == 2, :, :3] += 100
    images = images.astype(np.uint8)
    parts = images[:train], labels[:train], images[train:], labels[train:]
    return Dataset(name, *parts, tuple("abc"), (0.3, 0.4), (0.25, 0.2), **facts)


def train(data=None, **how):
    how = {"net": "mlp", "width": 0.125, "batch": 16, "epochs": 3, "preset": "paper"} | how
    return deep.train(tiny() if data is None else data, **how)


def micro():
    """One residual block: all that a network has, compiled in seconds."""
    body = nets.Residual(layers.Conv(3, SHAPE[2], 4), ((layers.basic(4, 8, 2),),))
    return nets.Net("micro", 1.0, K, SHAPE, body)


def flat():
    """A small perceptron."""
    return nets.mlp(width=0.125, num_classes=K, image_shape=SHAPE)


def plan_of(data=None, *, loss="ce", net=None, width=None, preset="paper", **given):
    values = {"batch": 16, "epochs": 3} | given
    data, net = (tiny() if data is None else data), (flat() if net is None else net)
    return _plan.plan_run(data, net=net, loss=loss, preset=preset, width=width, **values)


def same(a, b):
    """Two trees, bit by bit."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)


TIMES = ("images_per_second", "seconds")


def same_run(a, b):
    """State and history without its times, bit by bit."""
    history = [h._replace(**dict.fromkeys(TIMES, 0.0)) for h in (a.history, b.history)]
    return same(a.state, b.state) and same(*history)


# --- the step ---------------------------------------------------------------------------------------


def torch_loss(torch, name, preset, logits, labels):
    """The paper's formulas in PyTorch's words, reduced as the preset says."""
    F = torch.nn.functional
    p = torch.softmax(logits, 1)[torch.arange(len(labels)), labels]
    target = 15.0 * F.one_hot(labels, K)
    each = {
        "ce": lambda: F.cross_entropy(logits, labels, reduction="none"),
        "ls": lambda: F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1),
        "fl": lambda: -((1 - p) ** 3) * torch.log(p),
        "mse": lambda: ((logits - target) ** 2).sum(1) / (K if preset == "paper-code" else 1),
    }[name]()
    return each.sum() if preset == "paper-code-sum" else each.mean()


def clip(torch, module, most):
    """Clip the global norm; whether there was anything to clip."""
    norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
    for p in module.parameters():
        p.grad *= min(1.0, most / norm)
    return int(norm > most)


@pytest.mark.parametrize(
    ("net", "loss", "preset"),
    [
        ("mlp", "ce", "paper"),
        ("mlp", "mse", "paper-code"),
        ("micro", "fl", "paper-code-sum"),
    ],
)
def test_twenty_steps_are_those_of_pytorch(net, loss, preset):
    torch = pytest.importorskip("torch")
    import torch_nets

    plan = plan_of(net={"mlp": flat(), "micro": micro()}[net], loss=loss, preset=preset)
    recipe, hyper = plan.recipe, plan.hyper(0)
    state = _step.initial_state(plan.net, jax.random.key(0), hyper)
    # in float64, so that a wrong order of clipping, decay and momentum is no rounding
    values = dict(zip(hyper._fields[1:], (plan.scale, 0.1, 5e-4, 0.9, 2.0), strict=True))
    for name, value in values.items():
        assert getattr(hyper, name) == np.float32(value)
    hyper = hyper._replace(**{name: jnp.asarray(value) for name, value in values.items()})
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
    made = {
        "mlp": lambda: torch_nets.mlp(0.125, K, SHAPE),
        "micro": lambda: torch_nets.ResNet(4, [[torch_nets.BasicBlock(4, 8, 2)]], 8, K, SHAPE[2]),
    }
    module = torch_nets.load(made[net](), state.params, state.statistics)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step, rng = jax.jit(_step.step, static_argnums=0), np.random.default_rng(1)
    clipped = 0
    for number in range(20):
        rows = rng.choice(len(plan.data.train_images), 16, replace=False)
        images, labels = plan.data.train_images[rows], plan.data.train_labels[rows]
        state, totals = step(recipe, state, hyper, jax.random.key(1), images, labels, np.int32(number))
        x = np.float64(augment.normalise(jnp.asarray(images), plan.data.mean, plan.data.std))
        y = torch.from_numpy(labels).long()
        logits, _ = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        value = torch_loss(torch, loss, preset, logits, y)
        sgd.zero_grad()
        value.backward()
        clipped += clip(torch, module, 2.0)
        sgd.step()
        np.testing.assert_allclose(plan.scale * totals.loss, value.item(), rtol=1e-5, atol=1e-9)
    params, statistics = torch_nets.read(module)
    assert loss == "ce" or clipped > 0  # or the clipping was not tested
    for got, want in (state.params, params), (state.statistics, statistics):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=1e-6 * np.abs(w).max())


@pytest.mark.parametrize(("preset", "loss", "scale"), [("paper", "mse", 1), ("paper-code", "ce", 1)])
def test_only_the_mse_of_the_papers_code_is_averaged_over_classes(preset, loss, scale):
    assert plan_of(preset=preset, loss=loss).scale == scale
    assert plan_of(preset="paper-code", loss="mse").scale == 1 / K
    assert plan_of(preset="paper-code-sum", loss="mse").scale == 16


def test_the_whole_loop_runs_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        run = train(tiny(pad=1, flip=True), loss="fl", preset="paper-code", epochs=1)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((run.params, run.state.statistics)))
    assert run.status is deep.Status.COMPLETED


# --- epochs ---------------------------------------------------------------------------------------


def test_an_epoch_is_a_shuffle_and_what_is_left_over_changes():
    rows = jnp.arange(100, 181, dtype=jnp.int32)
    orders = [np.asarray(_step.shuffled(jax.random.key(k), rows, batch=16)) for k in range(8)]
    for order in orders:
        assert order.shape == (5, 16)
        assert len(np.unique(order)) == 80
    left = {int((set(range(100, 181)) - set(order.ravel().tolist())).pop()) for order in orders}
    assert len(left) > 3


def test_the_same_seed_gives_the_same_run_and_nothing_is_compiled_anew(compilations):
    first = train(loss="ls")
    compilations()
    assert same_run(first, train(loss="ls"))
    others = [train(loss="ls", **how) for how in ({"seed": 1}, {"learning_rate": 0.05}, {"alpha": 0.2})]
    assert compilations() == 0
    assert not any(same_run(first, other) for other in others)


def test_scanned_epochs_are_those_of_single_steps():
    plan = plan_of(tiny(pad=1, flip=True))
    recipe, hyper, key = plan.recipe, plan.hyper(0), jax.random.key(5)
    (chunk,) = _feed.Feed(plan.data).chunks(_step.shuffled(key, jnp.arange(80), batch=16))

    def start():
        return _step.initial_state(plan.net, key, hyper), _step.zero_totals()

    place = (np.int32(0), np.int32(0))
    scanned = _step._scanned(recipe, *start(), hyper, key, chunk.data, chunk.order, place)
    stepped = _step.run_steps(recipe, *start(), hyper, key, chunk.data, chunk.order, (0, 0), lambda *_: None)
    for got, want in zip(jax.tree.leaves(scanned), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert int(scanned[1].seen) == 80


def test_packed_leaves_come_back_in_their_places_and_only_kernels_are_rounded():
    """Two 1x1 kernels and a matrix of one size, two stacks of equal shape, vectors of several lengths."""
    shapes = [(3,), (1, 1, 2, 6), (3, 3, 2, 2), (5,), (1, 1, 3, 4), (3, 4), (3, 3, 2, 2), (3,)]
    rng = np.random.default_rng(0)
    tree = {str(i): jnp.asarray(rng.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)}
    layout = _packing.packing(tree)
    packed = layout.pack(tree)
    assert sorted(a.shape for a in packed.values()) == [(2, 3, 3, 2, 2), (3, 12), (11,)]
    assert jax.tree.all(jax.tree.map(np.array_equal, layout.unpack(packed), tree))
    net = nets.get("small_resnet", compute_dtype="bfloat16")
    for given in (layout.unpack(packed, net.rounded), _packing.TREES.unpack(tree, net.rounded)):
        for name, leaf in given.items():
            rounded = tree[name].astype("bfloat16" if len(tree[name].shape) == 4 else "float32")
            assert leaf.dtype == rounded.dtype
            assert np.array_equal(leaf, rounded)


@pytest.mark.parametrize("images", [1, 40, 10_000])
def test_images_in_chunks_give_the_same_run(images):
    data = tiny(pad=1, flip=True)
    chunked = train(data, data_memory=images * data.train_images[0].nbytes)
    assert same_run(train(data), chunked)


def test_chunks_hold_the_batches_in_their_order():
    data = tiny()
    feed = _feed.Feed(data, 64 * data.train_images[0].nbytes)
    order = np.random.default_rng(0).permutation(112).astype(np.int32).reshape(7, 16)
    chunks = list(feed.chunks(order))
    assert not feed.resident
    assert [(c.first, len(c.order)) for c in chunks] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    everything = np.concatenate([data.train_images, data.test_images])
    for c in chunks:
        assert np.array_equal(c.data.images[c.order], everything[order[c.first : c.first + len(c.order)]])
        assert np.array_equal(c.data.labels[c.order], feed.labels[order[c.first : c.first + len(c.order)]])


def test_a_network_learns_its_training_images_by_heart():
    run = deep.train("digits", net="mlp", width=0.5, max_train=32, batch=32, epochs=60, preset="small")
    assert run.history.train_accuracy[-1] == 1.0
    assert run.history.train_loss[-1] < 0.02


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "convention"), [("small", "paper"), ("paper-code-sum", "nc_loss")])
def test_the_history_is_what_dumped_features_give(preset, convention):
    run = train(preset=preset, augment=False, loss="ls", epochs=4)
    last = {name: values[-1] for name, values in run.history._asdict().items()}
    features, labels, W, b = run.features("train")
    assert features.shape == (81, 32)
    want = metrics.neural_collapse(
        np.float64(features), labels, np.float64(W), np.float64(b), convention=convention
    )
    for name in ("nc1", "nc2", "nc3", "nc4"):
        np.testing.assert_allclose(last[name], getattr(want, name), rtol=1e-3, err_msg=name)
    for part, count in (("train", 81), ("validation", 9), ("test", 30)):
        features, labels, W, b = run.features(part)
        logits = np.float64(features) @ np.float64(W).T + np.float64(b)
        assert len(labels) == count
        assert last[f"{part}_accuracy"] == np.mean(logits.argmax(1) == labels)
        value = jnp.mean(jax.vmap(losses.get("ls"))(jnp.asarray(logits), jnp.asarray(labels)))
        np.testing.assert_allclose(last[f"{part}_loss"], value, rtol=1e-5)


def test_batches_of_evaluation_cover_every_row_once(monkeypatch):
    plan = plan_of()
    run = train(metrics_every=3)
    expected = run.features()[0]
    monkeypatch.setattr(_measure, "BATCH", 25)
    asked = plan.batches()
    real = asked.order[asked.part < 3]
    assert np.array_equal(np.sort(real), np.arange(120))
    np.testing.assert_allclose(run.features()[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(train(metrics_every=3).history.nc1, run.history.nc1, rtol=1e-5)


def test_features_that_do_not_fit_cost_nc4_alone(monkeypatch):
    whole = train(epochs=1)
    monkeypatch.setattr(_measure, "KEEP", 100)
    part = train(epochs=1)
    assert np.isnan(part.history.nc4).all()
    assert np.array_equal(part.history.nc1, whole.history.nc1)
    assert part.to_dict()["last"]["nc4"] is None


def test_metrics_of_the_papers_code_are_those_of_augmented_images():
    data = tiny(pad=2)
    plain, augmented = (train(data, preset=p, batch=16, epochs=1) for p in ("paper", "paper-code"))
    assert same(plain.params, augmented.params)
    assert plain.history.train_loss != augmented.history.train_loss
    assert plain.history.test_loss == augmented.history.test_loss
    assert plain.history.validation_loss == augmented.history.validation_loss


def test_measurements_come_every_so_often_and_at_the_end():
    assert train(epochs=5, metrics_every=2).history.epoch.tolist() == [2, 4, 5]
    assert plan_of(epochs=800).config.metrics_every == 8


def test_the_best_is_the_first_of_the_best_on_validation():
    history = deep.History.empty()
    for epoch, (validation, test) in enumerate([(0.5, 0.1), (0.9, 0.2), (0.9, 0.3), (0.7, 0.4)], 1):
        row = dict.fromkeys(history._fields, 0.0)
        row |= {"epoch": epoch, "validation_accuracy": validation, "test_accuracy": test}
        history = history.extended(row)
    run = dataclasses.replace(train(epochs=1), history=history)
    assert run.best == (2, 0.9, 0.2)


# --- results --------------------------------------------------------------------------------------


def test_a_run_prints_and_becomes_json():
    run = train(loss="mse", kappa=2.0)
    text = repr(run)
    for words in (
        "mlp x 0.125 on tiny, mse(kappa=2, beta=15), 3 epochs",
        "completed 3 epochs",
        "NC1 NC2 NC3",
    ):
        assert words in text
    record = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert record["config"]["hyperparameters"] == {"kappa": 2.0, "beta": 15.0}
    assert record["history"]["nc1"] == run.history.nc1.tolist()
    assert record["best"]["test_accuracy"] == run.best.test_accuracy
    assert {"ufm", "source", "jax"} <= set(record["code"])
    assert record["hardware"]["backend"] == "cpu"
    assert _config.Config.from_dict(record["config"]) == run.config
    assert len(run.plot().axes) == 3


def test_bfloat16_is_for_computing_alone():
    run = train(dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.state._replace(failed=run.params)))
    assert run.features()[0].dtype == np.float32
    assert np.isfinite(run.history.train_loss).all()


def test_a_loss_of_ones_own():
    def hinge(z, k):
        own = jnp.arange(z.shape[0]) == k
        return jnp.sum(jnp.where(own, 0, jnp.maximum(1 + z - jnp.sum(jnp.where(own, z, 0)), 0) ** 2))

    run = train(loss=hinge, epochs=4)
    assert run.config.loss == "custom loss hinge"
    assert run.history.train_loss[-1] < run.history.train_loss[0]


def test_what_is_not_finite_stops_with_the_last_good_state():
    def bad(z, k):  # finite, with a gradient that is not
        value = jnp.sum((z - jax.nn.one_hot(k, K, dtype=z.dtype)) ** 2)
        far = jnp.abs(z[0]) > 1.0
        return jnp.where(far, value + jnp.sqrt(jnp.where(far, 0.0 * value, 1.0)), value)

    run = train(loss=bad, epochs=30, learning_rate=0.05)
    assert run.status is deep.Status.NON_FINITE
    assert "not finite in step" in run.message
    assert "learning rate below 0.05" in run.message
    failed = int(run.state.failed)
    assert run.epoch == failed // 5 < 30
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state))
    assert len(run.history.epoch) == run.epoch
    # the state is that of the steps before: the same run, stepped by hand
    plan = plan_of(loss=bad, epochs=30, learning_rate=0.05)
    recipe, hyper, key = plan.recipe, plan.hyper(0), plan.key
    state = _step.initial_state(plan.net, jax.random.fold_in(key, 0), hyper)
    step = jax.jit(_step.step, static_argnums=0)
    for number in range(failed):
        epoch = jax.random.fold_in(key, number // 5 + 1)
        order = _step.shuffled(
            jax.random.fold_in(epoch, 0), jnp.asarray(plan.rows("train"), jnp.int32), batch=16
        )
        rows = np.asarray(order)[number % 5]
        images, labels = plan.data.train_images[rows], plan.data.train_labels[rows]
        state, _ = step(recipe, state, hyper, key, images, labels, np.int32(number))
    for got, want in zip(jax.tree.leaves(run.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"net": "vgg"}, "net: expected one of wrn50, wrn18, small_resnet, mini_resnet, mlp"),
        ({"preset": "papers"}, "preset: expected one of paper, .*did you mean 'paper'"),
        ({"loss": "hinge"}, "loss: expected one of ce, ls, fl, mse"),
        ({"gamma": 2.0}, "gamma: expected a hyperparameter of loss 'ce'"),
        ({"epochs": 0}, "epochs: expected an integer >= 1, got 0"),
        ({"batch": 82}, "batch: expected at most the 81 training images, got 82"),
        ({"batch": 11, "max_train": 10}, "batch: expected at most the 10 training images"),
        ({"width": 1e-4}, "width: expected at least .*no channel"),
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number > 0"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a finite number >= 0"),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"seed": 2**63}, "seed: expected an integer >= 0 and <= 9"),
        ({"metrics_every": 0}, "metrics_every: expected an integer >= 1"),
        ({"max_train": 0}, "max_train: expected an integer >= 1"),
        ({"augment": 1}, "augment: expected True or False"),
        ({"resume": "yes"}, "resume: expected True, False or 'changed'"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds"),
        ({"net": deep.nets.mlp(), "width": None}, r"net: expected num_classes=3, image_shape=\(6, 6, 2\)"),
    ],
)
def test_bad_input_is_refused_before_any_compute(how, message, compilations):
    compilations()
    with pytest.raises(ValueError, match=message):
        train(**how)
    assert compilations() == 0


def test_an_unknown_split_and_an_empty_one():
    run = train(preset=dataclasses.replace(presets.PRESETS["paper"], validation=0.0), epochs=1)
    assert run.best is None
    assert np.isnan(run.history.validation_loss).all()
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        run.features("all")
    with pytest.raises(ValueError, match="'validation', which is empty"):
        run.features("validation")
