"""Networks against the counts of docs/protocol.md, section 1, and the same networks in PyTorch."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_nets
from jax.sharding import PartitionSpec
from tolerances import close, eps

from ufm.deep import layers, nets

QUICK = {"xla_backend_optimization_level": 0}  # these programs run once
EVERY = {
    "wrn50": 0.25,
    "wrn18": 0.125,
    "small_resnet": 0.5,
    "mini_resnet": 0.25,
    "mlp": 0.25,
}  # widths: few operations
SHAPES = dict.fromkeys(nets.NETS, (8, 8, 3)) | {"wrn18": (9, 7, 2)}  # odd sizes meet the padding
every_net = pytest.mark.parametrize("name", nets.NETS)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


# --- instances ----------------------------------------------------------------------------------------


def make(name: str, K: int = 7, **changes: Any) -> nets.Net:
    return nets.get(name, **({"width": EVERY[name], "num_classes": K, "image_shape": SHAPES[name]} | changes))


def batch(net: nets.Net, B: int = 12, dtype: Any = np.float64, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1.5, (B, *net.image_shape)).astype(dtype), rng.integers(net.num_classes, size=B)


@cache
def initial(net: nets.Net, dtype: Any, seed: int) -> tuple[Any, Any]:
    """Compiled whole: eagerly every layer compiles alone."""
    make = jax.jit(partial(net.init, dtype=dtype), compiler_options=QUICK)
    return jax.device_get(make(jax.random.key(seed)))


def start(net: nets.Net, dtype: Any = jnp.float64, seed: int = 0) -> tuple[Any, Any]:
    """Random scales, shifts and running statistics too: at 1 and 0 a mistake may not show."""
    rng = np.random.default_rng(seed)

    def move(path: Any, a: Any) -> Any:
        moved = path[-1].key in ("scale", "shift", "mean", "var")
        return jnp.asarray(np.asarray(a) + (rng.uniform(0, 0.3, a.shape) if moved else 0), dtype)

    return jax.tree_util.tree_map_with_path(move, initial(net, dtype, seed))


def cross_entropy(logits: Any, y: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def loss(params: Any, state: Any, x: Any, y: Any, *, net: nets.Net, axis_name: str | None = None) -> Any:
    logits, features, state = net.apply(params, state, x, train=True, axis_name=axis_name)
    return cross_entropy(logits, y), (logits, features, state)


def gradient(net: nets.Net) -> Any:
    return jax.jit(jax.value_and_grad(partial(loss, net=net), has_aux=True), compiler_options=QUICK)


def peer(net: nets.Net, params: Any, state: Any) -> torch.nn.Module:
    module = torch_nets.NETS[net.name](net.width, net.num_classes, net.image_shape)
    return torch_nets.load(module, params, state).train()


def same(actual: Any, expected: Any, ulps: float) -> None:
    """The same tree, every leaf close."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        close(a, b, ulps=ulps, name=jax.tree_util.keystr(path))


# --- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "of_10", "of_100", "macs"),
    [
        (0.25, 5_880_074, 6_064_484, 0.301e9),
        (0.5, 10_345_674, 10_530_084, 0.558e9),
        (1, 23_520_842, 23_705_252, 1.298e9),
        (2, 66_847_050, 67_031_460, 3.684e9),
    ],
)
def test_wrn50_has_the_protocols_counts(width, of_10, of_100, macs):
    net = nets.wrn50(width=width, num_classes=10)
    assert net.size == of_10
    assert nets.wrn50(width=width, num_classes=100).size == of_100
    assert net.features == 2048
    assert abs(net.flops((32, 32, 3)) - macs) <= 0.0005e9


@every_net
def test_size_macs_and_dimension_are_those_of_the_module(name):
    net = make(name)
    module = torch_nets.NETS[name](net.width, net.num_classes, net.image_shape)
    assert net.size == sum(p.numel() for p in module.parameters())
    counted = []

    def count(layer: Any, _: Any, out: Any) -> None:
        counted.append(layer.weight.numel() * out[0].numel() // out.shape[1])

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    _, features = module.eval()(torch.zeros(1, net.image_shape[2], *net.image_shape[:2]))
    assert net.flops() == sum(counted)
    assert net.features == features.shape[1]


def test_wrn18_doubles_its_planes_and_the_small_net_is_small():
    assert [nets.wrn18(width=x).features for x in (0.25, 1, 2)] == [128, 512, 1024]
    assert nets.wrn18(width=1, num_classes=10).size == 11_173_962  # the ResNet-18 of CIFAR
    assert nets.small_resnet().features == 64
    assert 50_000 <= nets.small_resnet().size <= 200_000
    assert nets.mlp(hidden=(30, 20), width=2, image_shape=(4, 4, 1)).size == 17 * 60 + 61 * 40 + 41 * 10


# --- the start ----------------------------------------------------------------------------------------


@every_net
def test_the_start_is_uniform_with_the_protocols_bounds(name):
    params, state = initial(make(name), jnp.float32, 3)
    for path, leaf in jax.tree.leaves_with_path(params):
        kind, leaf = path[-1].key, np.asarray(leaf)
        assert leaf.dtype == np.float32
        if kind in ("scale", "shift"):
            assert (leaf == (kind == "scale")).all()
            continue
        matrix = params[path[0].key]["W"].shape[1] if kind == "b" else None
        fan_in = matrix or (leaf.shape[1] if kind == "W" else np.prod(leaf.shape[:3]))
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(leaf).max() <= bound
        if leaf.size > 500:
            assert np.abs(leaf).max() > 0.98 * bound
            close(leaf.std(), bound / np.sqrt(3), ulps=0.1 / eps(leaf))
    for path, leaf in jax.tree.leaves_with_path(state):
        assert (np.asarray(leaf) == (path[-1].key == "var")).all()


def test_no_two_layers_start_alike_and_no_two_leaves_share_memory():
    params, state = make("small_resnet").init(jax.random.key(0))
    kernels = [a for p, a in jax.tree.leaves_with_path(params) if p[-1].key == "kernel"]
    assert len({float(k.ravel()[0] * np.sqrt(k[..., 0].size)) for k in map(np.asarray, kernels)}) == len(
        kernels
    )
    leaves = jax.tree.leaves((params, state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # a step donates them


# --- the same network in PyTorch ----------------------------------------------------------------------


@every_net
def test_float64_logits_gradients_and_statistics_are_pytorchs(name):
    net = make(name)
    assert_pytorchs(net, torch_nets.NETS[name](net.width, net.num_classes, net.image_shape))


def test_blocks_that_narrow_are_pytorchs():
    """Shortcuts to fewer planes, at stride 2 and 1: the other branch of their gradient."""
    body = nets.Residual(layers.Conv(3, 3, 16), ((layers.basic(16, 8, 2),), (layers.basic(8, 5, 1),)))
    blocks = [[torch_nets.BasicBlock(16, 8, 2)], [torch_nets.BasicBlock(8, 5, 1)]]
    assert_pytorchs(nets.Net("narrow", 1.0, 7, (9, 7, 3), body), torch_nets.ResNet(16, blocks, 5, 7, 3))


def assert_pytorchs(net: nets.Net, module: torch.nn.Module) -> None:
    """Logits, features, gradients and running statistics of a step in training mode."""
    params, state = start(net)
    x, y = batch(net)
    module = torch_nets.load(module, params, state).train()
    (value, (logits, features, new)), slopes = gradient(net)(params, state, x, y)
    out, penultimate = module(torch_nets.images(x))
    reference = torch.nn.functional.cross_entropy(out, torch.tensor(y))
    reference.backward()
    close(value, reference.item(), ulps=1e4)
    # 1e-10 is what is asked for; 53 layers in sequence stay two orders below it
    close(logits, out.detach().numpy(), ulps=1e-11 / eps(logits), name="logits")
    close(features, penultimate.detach().numpy(), ulps=1e-11 / eps(logits), name="features")
    expected, statistics = torch_nets.read(module, lambda t: t.grad)
    same(slopes, expected, ulps=1e-10 / eps(logits))
    same(new, statistics, ulps=1e-12 / eps(logits))


@every_net
def test_float32_logits_are_pytorchs(name):
    """In evaluation, where no batch variance of few values amplifies the rounding."""
    net = make(name)
    params, state = start(net, jnp.float32)
    x, _ = batch(net, dtype=np.float32)
    module = peer(net, params, state).eval()
    apply = jax.jit(partial(net.apply, train=False), compiler_options=QUICK)
    logits, features, new = apply(params, state, x)
    assert {a.dtype for a in jax.tree.leaves((logits, features, new))} == {jnp.dtype(jnp.float32)}
    with torch.no_grad():
        out, _ = module(torch_nets.images(x))
    close(logits, out.numpy(), ulps=1e-5 / eps(logits))
    same(new, state, ulps=0)


def descend(net: nets.Net, rate: float = 0.1) -> Any:
    """The step of docs/protocol.md, section 3.1: clip at norm 2, then add the decay, then momentum."""

    @jax.jit
    def step(params: Any, state: Any, velocity: Any, x: Any, y: Any) -> Any:
        (_, (_, _, state)), slopes = jax.value_and_grad(partial(loss, net=net), has_aux=True)(
            params, state, x, y
        )
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(slopes)))
        factor = jnp.minimum(1.0, 2 / (norm + 1e-6))  # PyTorch's 1e-6
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + factor * g + 5e-4 * p, velocity, slopes, params)
        return jax.tree.map(lambda p, v: p - rate * v, params, velocity), state, velocity, norm

    return step


def test_twenty_steps_are_pytorchs():
    net = make("small_resnet", image_shape=(12, 12, 3))
    params, state = start(net)
    params["classifier"]["W"] *= 10  # a gradient above the clip at first, below it later
    module = peer(net, params, state)
    optimizer, step = torch_nets.sgd(module), descend(net)
    velocity, norms = jax.tree.map(jnp.zeros_like, params), []
    for t in range(20):
        x, y = batch(net, B=16, seed=t % 3)
        params, state, velocity, norm = step(params, state, velocity, x, y)
        _, other = torch_nets.step(module, optimizer, torch_nets.images(x), torch.tensor(y))
        close(norm, other.item(), ulps=1e-7 / eps(norm), name=f"gradient norm of step {t}")
        norms.append(float(norm))
    assert max(norms) > 2 > min(norms)
    expected, statistics = torch_nets.read(module)
    same(params, expected, ulps=1e-8 / eps(norm))  # rounding grows along a trajectory
    same(state, statistics, ulps=1e-8 / eps(norm))


# --- what holds by itself -----------------------------------------------------------------------------


@every_net
def test_every_parameter_gets_a_gradient(name):
    net = make(name)
    params, state = initial(net, jnp.float32, 1)
    _, slopes = gradient(net)(params, state, *batch(net, dtype=np.float32))
    for path, slope in jax.tree.leaves_with_path(slopes):
        assert slope.dtype == jnp.float32
        # ReLU may silence a channel or a pixel, never a layer
        assert np.isfinite(slope).all(), path
        assert np.mean(np.asarray(slope) != 0) > 0.1, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["small_resnet", "mlp"])
def test_a_network_overfits_32_images(name):
    net = make(name, width=1.0)
    params, state = net.init(jax.random.key(2))
    x, y = batch(net, B=32, dtype=np.float32, seed=3)
    velocity, step = jax.tree.map(jnp.zeros_like, params), descend(net)
    for _ in range(60):
        params, state, velocity, _ = step(params, state, velocity, x, y)
    for train in (True, False):
        logits, features, _ = jax.jit(partial(net.apply, train=train))(params, state, x)
        assert (np.argmax(logits, axis=1) == y).all()
        assert (np.asarray(features) >= 0).all()
    W, b = net.classifier(params)
    close(logits, np.asarray(features) @ np.asarray(W).T + np.asarray(b), ulps=64)


def test_evaluation_sees_each_image_alone_and_training_does_not():
    net = make("small_resnet")
    params, state = start(net)
    x, _ = batch(net)
    alone, whole = (net.apply(params, state, x[s], train=False)[0] for s in (slice(2, 5), slice(None)))
    close(alone, whole[2:5], ulps=256)
    alone, whole = (net.apply(params, state, x[s], train=True)[0] for s in (slice(2, 5), slice(None)))
    assert np.abs(alone - whole[2:5]).max() > 1e-2


def test_bfloat16_computes_near_float32_and_keeps_float32():
    net = make("small_resnet", width=1.0)
    half = make("small_resnet", width=1.0, compute_dtype=jnp.bfloat16)
    params, state = start(net, jnp.float32)
    x, y = batch(net, B=32, dtype=np.float32)
    (value, (logits, _, new)), slopes = gradient(net)(params, state, x, y)
    (value_16, (logits_16, _, new_16)), slopes_16 = gradient(half)(params, state, x, y)
    assert {a.dtype for a in jax.tree.leaves((logits_16, new_16, slopes_16))} == {jnp.dtype(jnp.float32)}
    rounding = float(jnp.finfo(jnp.bfloat16).eps)
    close(logits_16, logits, ulps=8 * rounding / eps(logits))
    close(value_16, value, ulps=8 * rounding / eps(logits))
    same(new_16, new, ulps=8 * rounding / eps(logits))
    for a, b in zip(jax.tree.leaves(slopes_16), jax.tree.leaves(slopes), strict=True):
        assert np.linalg.norm(a - b) < 0.25 * np.linalg.norm(b)
    assert np.abs(logits_16 - logits).max() > rounding / 64  # and it does compute in bfloat16


# --- batch norm ---------------------------------------------------------------------------------------


def plain(params: Any, x: Any) -> Any:
    """The definition, for autodiff."""
    mean = jnp.mean(x, axis=(0, 1, 2), keepdims=True)
    var = jnp.mean((x - mean) ** 2, axis=(0, 1, 2), keepdims=True)
    scale, shift = (params[name][None, None, None] for name in ("scale", "shift"))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + shift


def norm_instance() -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)
    params = {"scale": jnp.asarray(rng.normal(size=5)), "shift": jnp.asarray(rng.normal(size=5))}
    state = {"mean": jnp.asarray(rng.normal(size=5)), "var": jnp.asarray(rng.uniform(1, 2, size=5))}
    x, y_bar = rng.normal(1.0, 2.0, size=(2, 4, 3, 6, 5))
    return params, state, jnp.asarray(x), jnp.asarray(y_bar)


def test_batch_norm_and_its_backward_pass_are_those_of_the_definition():
    params, state, x, y_bar = norm_instance()
    y, back = jax.vjp(lambda p, x: layers.batch_norm(p, state, x, train=True)[0], params, x)
    expected, expected_back = jax.vjp(plain, params, x)
    close(y, expected)
    for mine, other in zip(jax.tree.leaves(back(y_bar)), jax.tree.leaves(expected_back(y_bar)), strict=True):
        close(mine, other, ulps=256)


def test_running_statistics_take_the_unbiased_variance():
    params, state, x, _ = norm_instance()
    new = layers.batch_norm(params, state, x, train=True)[1]
    flat = np.asarray(x).reshape(-1, 5)
    close(new["mean"], 0.9 * np.asarray(state["mean"]) + 0.1 * flat.mean(0))
    close(new["var"], 0.9 * np.asarray(state["var"]) + 0.1 * flat.var(0, ddof=1))


def test_the_variance_does_not_cancel():
    """Where the running mean is some deviations away from the mean, however large both are."""
    params, state, x, _ = jax.tree.map(lambda a: a.astype(jnp.float32), norm_instance())
    state["mean"] += jnp.float32(4096)
    y, _ = layers.batch_norm(params, state, x + jnp.float32(4096), train=True)
    exact = plain(*jax.tree.map(lambda a: a.astype(jnp.float64), (params, x + jnp.float32(4096))))
    close(y, exact, ulps=4, scale=4096)  # the mean's own rounding; a one-pass variance is 100 times worse


@pytest.mark.parametrize("over", ["vmap", "shard_map"])
def test_statistics_over_a_mapped_axis_are_those_of_the_whole_batch(over):
    """Two halves under vmap; one device under shard_map, whose types tell what differs between devices."""
    net = make("small_resnet")
    params, state = start(net)
    x, y = batch(net)
    (value, (logits, _, new)), slopes = gradient(net)(params, state, x, y)

    def mapped(params: Any, state: Any, x: Any, y: Any) -> Any:
        value, (logits, _, new) = loss(params, state, x, y, net=net, axis_name="data")
        return jax.lax.pmean(value, "data"), (logits, new)

    if over == "vmap":
        halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), (x, y))

        each = jax.value_and_grad(partial(loss, net=net, axis_name="data"), has_aux=True)
        (values, (logits_2, _, new_2)), slopes_2 = jax.jit(
            jax.vmap(each, (None, None, 0, 0), axis_name="data"), compiler_options=QUICK
        )(params, state, *halves)
        value_2, logits_2 = values.mean(), logits_2.reshape(logits.shape)
        new_2, slopes_2 = jax.tree.map(lambda a: a[1], new_2), jax.tree.map(lambda a: a.mean(0), slopes_2)
    else:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows, whole = PartitionSpec("data"), PartitionSpec()
        function = jax.shard_map(
            jax.value_and_grad(mapped, has_aux=True),
            mesh=mesh,
            in_specs=(whole, whole, rows, rows),
            out_specs=((whole, (rows, whole)), whole),
        )
        (value_2, (logits_2, new_2)), slopes_2 = jax.jit(function, compiler_options=QUICK)(
            params, state, x, y
        )
    close(value_2, value, ulps=1e3)
    close(logits_2, logits, ulps=1e5)
    same(new_2, new, ulps=1e4)
    same(slopes_2, slopes, ulps=1e6)


# --- records and misuse -------------------------------------------------------------------------------


@every_net
def test_a_net_is_static_under_jit(name, compilations):
    net, again = make(name, compute_dtype=jnp.float32), make(name, compute_dtype="float32")
    assert net == again
    assert hash(net) == hash(again)
    assert net != make(name, K=8)
    assert nets.get(net) is net
    size = jax.jit(lambda x, net: x + net.features, static_argnames="net")
    size(1, net=net)
    compilations()
    size(1, net=again)
    assert compilations() == 0
    assert f"{net.size:,} parameters, d = {net.features}" in repr(net)


@every_net
def test_compiled_once_for_each_mode(name, compilations):
    net = make(name)
    params, state = net.init(jax.random.key(0))
    x, _ = batch(net, B=4, dtype=np.float32)
    apply = jax.jit(partial(net.apply, train=False), compiler_options=QUICK)
    _, _, state = apply(params, state, x)
    compilations()
    apply(params, state, x)
    assert compilations() == 0


IMAGES = jnp.zeros((2, 8, 8, 3), jnp.float32)
MISUSE = {
    "unknown net": (lambda: nets.get("wrn5"), "net: expected one of wrn50, wrn18, small_resnet, mini_resnet"),
    "options": (lambda: nets.get(make("mlp"), width=2.0), "width: options go with a net given by name"),
    "one class": (lambda: nets.wrn18(num_classes=1), "num_classes: expected an integer >= 2, got 1"),
    "no channel": (lambda: nets.wrn50(width=0.01), "width: expected at least 0.015625, got 0.01"),
    "no plane": (lambda: nets.small_resnet(width=0.05), "width: expected at least 0.0625"),
    "no unit": (lambda: nets.mlp(hidden=(9, 2), width=0.3), "width: expected at least 0.5"),
    "negative": (lambda: nets.wrn18(width=-1.0), "width: expected a finite number > 0, got -1.0"),
    "nan": (lambda: nets.mlp(width=float("nan")), "width: expected a finite number > 0, got nan"),
    "no hidden": (lambda: nets.mlp(hidden=()), "hidden: expected at least one layer size"),
    "shape": (lambda: nets.wrn18(image_shape=(32, 32)), "image_shape: expected"),
    "dtype": (lambda: nets.wrn18(compute_dtype=jnp.int32), "compute_dtype: expected a floating dtype"),
    "channels": (lambda: run("wrn18", IMAGES), r"images: expected shape \(B, height, width, 2\), got"),
    "size": (lambda: run("mlp", IMAGES[:, 1:]), r"images: expected shape \(B, 8, 8, 3\), got \(2, 7, 8, 3\)"),
    "rank": (lambda: run("small_resnet", IMAGES[0]), "images: expected shape"),
    "bytes": (lambda: run("small_resnet", IMAGES.astype(jnp.uint8)), "images: expected a floating dtype"),
    "one value": (
        lambda: run("wrn50", jnp.zeros((1, 1, 1, 3), jnp.float32)),
        "images: expected more than one value a channel",
    ),
}  # fmt: skip


def run(name: str, images: Any) -> Any:
    net = make(name)
    params, state = jax.eval_shape(net.init, jax.random.key(0))
    return jax.eval_shape(partial(net.apply, train=True), params, state, images)


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused_by_name(case):
    call, message = MISUSE[case]
    with pytest.raises(ValueError, match=message):
        call()
