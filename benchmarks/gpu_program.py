"""What the programs of training and of the solver would cost on a GPU: compiled for it, not run.

XLA compiles for a GPU that is not there if the CUDA plugin of JAX is installed; docs/deep.md says how. The
compiled program tells its temporary memory exactly, and the bytes that each of its kernels reads and writes.
Operands and results count once for each kernel, which is an upper bound where a cache holds something between
two kernels. Bytes over the card's bandwidth are a lower bound for the time of a step. The time itself is not
known: the choice among kernels of equal function (autotuning) needs the card.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

import ufm
from benchmarks.machine import Row
from ufm import _solve, losses, solvers
from ufm.deep import _measure, _step, nets

#: bytes per second between the chip and its memory: NVIDIA's data sheet of the H100 SXM
BANDWIDTH = 3.352e12
#: XLA's description of the card, from the data sheet and the CUDA guide for compute capability 9.0
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" device_description_str: "H100" dnn_version_info { major: 9 minor: 10 }
"""
BYTES = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "s8": 1,
    "u8": 1,
    "pred": 1,
}
#: instructions that launch no kernel of their own
FREE = ("get-tuple-element", "bitcast", "constant", "tuple", "parameter", "while")


class Cost(NamedTuple):
    """What one pass through the body of a loop costs."""

    bytes_moved: int
    kernels: int
    temporary: int  # bytes, of the whole program


def compiled(function: Any, *arguments: Any) -> list[Cost]:
    """The loops of a jitted function compiled for an H100, the longest body first.

    Arguments without a dtype are static.
    """
    from jax.experimental import topologies

    card = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1").devices[0]
    place = SingleDeviceSharding(card)

    def shape(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) if hasattr(x, "dtype") else x

    lowered = function.lower(*(jax.tree.map(shape, x) for x in arguments))
    program = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})
    temporary = program.memory_analysis().temp_size_in_bytes
    return [Cost(sum(moved), len(moved), temporary) for moved in map(kernels, loops(program.as_text()))]


def loops(text: str) -> list[str]:
    """The bodies of the loops of an optimised program, the longest first."""
    computations = dict(re.findall(r"\n(?:ENTRY )?(%[\w.\-]+) \([^\n]*\{\n(.*?)\n\}", text, re.DOTALL))
    names = set(re.findall(r"\bbody=(%[\w.\-]+)", text))
    return sorted((computations[name] for name in names), key=lambda body: -body.count("\n"))


def kernels(body: str) -> list[int]:
    """The bytes that each kernel of a computation reads and writes."""
    shapes: dict[str, int] = {}
    moved = []
    for line in body.split("\n"):
        match = re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, instruction, rest = match.groups()
        shapes[name] = size(shape)
        if instruction not in FREE:
            operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
            moved.append(shapes[name] + sum(shapes.get(operand, 0) for operand in operands))
    return moved


def size(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, as XLA writes their types."""
    arrays = re.findall(r"\b(" + "|".join(BYTES) + r")\[([0-9,]*)\]", shape)
    return sum(BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in arrays)


def rows(quick: bool) -> Iterator[Row]:
    """One row for each program, or for each of its loops."""
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        raise SystemExit(
            "gpu: JAX's CUDA plugin is not installed; docs/deep.md, section 'Compiled for a GPU'"
        )
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # a program for an absent card cannot be read back
    for name, width in (("wrn50", 1.0), ("wrn18", 1.0), ("wrn50", 2.0))[: 1 if quick else None]:
        net = nets.get(name, width=width, num_classes=10, compute_dtype="bfloat16")
        yield row(f"training step, {net.name}({width:g}), bfloat16, batch 128", compiled(*training(net))[0])
        yield row(
            f"evaluation, {net.name}({width:g}), bfloat16, batch {_measure.BATCH}",
            compiled(*evaluation(net))[0],
        )
    for n in (10, 100):
        newton, gradients = compiled(*solve(n))[:2]
        yield row(f"Newton step without its loop, float64, K=10, d=64, n={n}", newton)
        yield row(f"step of conjugate gradients, float64, K=10, d=64, n={n}", gradients)
    newton, gradients = compiled(*sweep(1000))[:2]
    yield row("Newton step without its loop, sweep of 1000 problems, float64, K=10, d=64, n=10", newton)
    yield row("step of conjugate gradients, sweep of 1000 problems, float64, K=10, d=64, n=10", gradients)


def row(program: str, cost: Cost) -> Row:
    """The numbers of a program."""
    return {
        "program": program,
        "GB moved": cost.bytes_moved / 1e9,
        "kernels": cost.kernels,
        "temporary GiB": cost.temporary / 2**30,
        "at least ms": 1e3 * cost.bytes_moved / BANDWIDTH,
    }


def _recipe(net: nets.Net) -> tuple[_step.Recipe, _step.Hyper, Any, _step.Images]:
    hyper = _step.Hyper(losses.get("ce"), *(jnp.float32(x) for x in (1, 0.05, 5e-4, 0.9, 2)))
    recipe = _step.Recipe(net, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 4, True)
    state = jax.eval_shape(lambda: _step.initial_state(net, jax.random.key(0), hyper))
    images = _step.Images(_shape((50_000, 32, 32, 3), "uint8"), _shape((50_000,), "int32"))
    return recipe, hyper, state, images


def _shape(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def training(net: nets.Net) -> tuple[Any, ...]:
    """An epoch of CIFAR-10 and its arguments."""
    recipe, hyper, state, images = _recipe(net)
    totals, key = jax.eval_shape(_step.zero_totals), jax.eval_shape(lambda: jax.random.key(0))
    order, place = _shape((390, 128), "int32"), (np.int32(0), np.int32(0))
    return _step._scanned, recipe, state, totals, hyper, key, images, order, place


def evaluation(net: nets.Net) -> tuple[Any, ...]:
    """The pass that measures loss, accuracy and neural collapse, and its arguments."""
    recipe, hyper, state, images = _recipe(net)
    tally = jax.eval_shape(lambda: _measure._empty(K=net.num_classes, d=net.features))
    order = _shape((235, _measure.BATCH), "int32")
    return _measure._scanned, recipe, tally, state, hyper.loss, None, images, order, order, np.int32(0), False


def solve(n: int) -> tuple[Any, ...]:
    """The solver's program, in float64, and its arguments."""
    prob = ufm.Problem.balanced("ce", K=10, d=64, n=n)
    options = _solve.Options(solvers.get("newton"), False, 0, 1)
    program = jax.jit(_solve._run, static_argnums=7)
    return program, prob, ufm.init(prob), None, _solve.Before(), 1e-10, 1000, 1000, options


def sweep(problems: int) -> tuple[Any, ...]:
    """As many problems in one program, and its arguments."""
    prob = ufm.Problem.balanced("ce", K=10, d=64, n=10)

    def together(seeds: jax.Array, lam_W: jax.Array) -> Any:
        def one(seed: jax.Array, lam: jax.Array) -> Any:
            problem = prob.replace(lam_W=lam)
            return _solve.run_once(
                problem, ufm.init(problem, seed=seed), 1e-10, 1000, solvers.get("newton"), False
            )

        return jax.vmap(one)(seeds, lam_W)

    return jax.jit(together), _shape((problems,), "int64"), _shape((problems,), "float64")
