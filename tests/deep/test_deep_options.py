"""Every option of `train` is one of `train_many`, `plan_sweep` and `ufm train`, from one declaration."""

import inspect

import pytest
from test_deep_train import tiny

from ufm import deep
from ufm._cli import _deep
from ufm.deep import _options, _replicas, _sweep
from ufm.deep._train import OPTIONS


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("function", "axes", "own"),
    [
        (deep.train_many, _replicas._AXES, {"net": "mlp", "preset": "small"}),
        (deep.plan_sweep, _sweep.AXES, {"epochs": (100,)}),
    ],
)
def test_functions_take_every_option_with_its_default(function, axes, own):
    found = defaults(function)
    expected = {name: option.default for name, option in OPTIONS.items() if name not in axes}
    assert {name: found[name] for name in (*expected, *own)} == expected | own
    assert ("hyperparameters" in found) == (function is deep.plan_sweep)
    with pytest.raises(TypeError, match="net_width"):
        deep.train_many(tiny(), net_width=1)


def test_the_command_takes_every_option_and_explains_it():
    (command,) = [_deep.train]
    params = {p.name: p for p in command.params}
    for name, option in OPTIONS.items():
        assert option.help, name
        text = params[name].help
        assert text[0].isupper()
        assert "`" not in text
        if option.default is not None:
            assert f"[default: {option.default}]" in text
    assert "[default: epochs / 100, as in the paper]" in params["metrics_every"].help
    assert "One of wrn50, wrn18, small_resnet, mini_resnet, mlp." in params["net"].help


def test_a_new_option_of_train_reaches_the_others():
    def train(
        data: str = "digits", *, net: str = "mlp", noise: float | None = None, out=None, **hyperparameters
    ):
        """Train.

        Args:
            data: a name. Or more.
            noise: standard deviation of
                the noise. Default: none.
            out: a folder.

        Raises:
            ValueError: a mistake.
        """

    assert _options.options_of(train)["noise"] == (
        "noise", "float | None", None, "standard deviation of the noise. Default: none."
    )  # fmt: skip
    assert list(_options.options_of(train)) == ["data", "net", "noise"]

    @_options.takes_options_of(train, without=("net",), hyperparameters=True, noise=0.5)
    def other(data, *, nets, **options):
        return data, nets, options

    assert defaults(other)["noise"] == 0.5
    assert other("a", nets=1, gamma=2.0) == ("a", 1, {"noise": 0.5, "gamma": 2.0})
