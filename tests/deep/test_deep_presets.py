"""Presets against the numbers of docs/protocol.md, sections 3.1 and 3.2."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_deep_train import tiny

from ufm.deep import presets

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def rows(section):
    """The rows of the first table in a section, as lists of cells without marks; the header is first."""
    text = re.split(r"^#+ ", PROTOCOL.partition(f" {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[re.sub(r"[`*]", "", cell).strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(text):
    return [float(number) for number in re.findall(r"\.?\d+(?:\.\d+)?(?:e-\d+)?", text)]


@pytest.mark.parametrize(
    ("preset", "epochs", "counts"),
    [
        ("paper", 100, (42, 29, 29)),
        ("paper-code", 100, (41, 29, 30)),
        ("paper-code", 800, (341, 229, 230)),
        ("paper-code-sum", 800, (341, 229, 230)),
        ("paper", 7, (3, 2, 2)),
    ],
)
def test_the_learning_rate_drops_at_the_epochs_of_the_protocol(preset, epochs, counts):
    rates = presets.PRESETS[preset].learning_rates(epochs)
    values, seen = np.unique(rates, return_counts=True)
    np.testing.assert_allclose(values, [0.001, 0.01, 0.1], rtol=1e-12)
    assert tuple(seen[::-1]) == counts
    assert (np.diff(rates) <= 0).all()


def test_every_preset_has_the_step_of_the_protocol():
    of = {name: numbers(value)[0] for name, value, _ in rows("3.1 One step")[1:] if numbers(value)}
    data = {name: cells for name, *cells in rows("2. Data")}
    assert set(of) == {"optimiser", "learning rate", "weight decay", "clipping", "batch"}
    assert presets.PRESETS["paper"].batch == of["batch"]
    for p in presets.PRESETS.values():
        assert (p.momentum, p.learning_rate) == (of["optimiser"], of["learning rate"])
        assert (p.weight_decay, p.clip) == (of["weight decay"], of["clipping"])
        assert 100 * p.validation in (numbers(data["validation"][0])[0], 0)  # 0: the preset says so


def test_every_preset_has_the_reduction_of_the_protocol():
    table = {name: cells for name, *cells in rows("3.2 Presets")[1:]}
    assert set(table) == set(presets.PRESETS)
    for name, (batch, reduction, mse, _) in table.items():
        p = presets.PRESETS[name]
        assert p.batch == int(batch)
        assert reduction.startswith(p.reduction)
        assert p.mse_over_classes == ("mean" if "1/K" in mse else "sum")


def test_cifar100_is_normalised_as_the_protocol_says():
    table = {name: cells for name, *cells in rows("2. Data")}
    of_cifar10 = [numbers(table[name][0]) for name in ("mean of the channels", "standard deviation")]
    for name, p in presets.PRESETS.items():
        constants = p.constants(tiny(name="cifar100"))
        assert (list(map(list, constants)) == of_cifar10) == name.startswith("paper")
        assert p.constants(tiny()) == ((0.3, 0.4), (0.25, 0.2))
