"""The options --counts and --model."""

import pytest
from test_cli import run

from ufm._cli import _options


def test_counts_name_samples_and_classes():
    assert _options.counts("100x2,7, 5x3").tolist() == [100, 100, 7, 5, 5, 5]
    given = {"counts": _options.counts("1x1,3x2"), "loss": "ce"}
    assert _options._labels_from(given.pop("counts"), given).tolist() == [0, 1, 1, 1, 2, 2, 2]
    for wrong in ("", "3x0,2", "0x3", "3x2,", "2.5x3", "-3x2", "999999999x2"):
        with pytest.raises(ValueError, match=r"^expected"):
            _options.counts(wrong)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--n", 2), "counts: expected either --counts or --n, got both"),
        (("--K", 5), "counts: expected K=5 classes, got 4"),
    ],
)
@pytest.mark.parametrize("command", ["solve", "verify", "sweep", "landscape"])
def test_counts_contradict_other_sizes(command, args, message):
    result = run(command, "--counts", "2x3,1x1", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_class_weights_are_read_and_used():
    assert _options.class_weights("0.5x2, 3,1e-1x1").tolist() == [0.5, 0.5, 3.0, 0.1]
    for wrong in ("", "1x0", "ax2", "1x2,", "nanx3", "1xx2"):
        with pytest.raises(ValueError, match=r"^expected"):
            _options.class_weights(wrong)
    result = run("solve", "--counts", "3x2,1x2", "--class-weights", "1x2,3x2", "--d", 5, "--json")
    assert result.exit_code == 0
    assert '"class_weights": [ 1.0, 1.0, 3.0, 3.0 ]' in " ".join(result.stdout.split())
    result = run("solve", "--counts", "3x2,1x2", "--class-weights", "1x2,0x2", "--d", 5)
    assert (result.exit_code, "class_weights: expected finite numbers > 0" in result.stderr) == (2, True)


def test_landscape_of_another_model_is_where_solutions_end():
    sizes = ("--K", 3, "--d", 3, "--n", 1, "--lam", 1e-2, "--starts", 6)
    result = run("landscape", "--model", "nonnegative", *sizes)
    assert (result.exit_code, "0.141986184087" in result.stdout) == (1, True)
    result = run("landscape", "--model", "nonnegative", "--K", 3, "--search")
    assert (result.exit_code, "search: expected with two free factors" in result.stderr) == (2, True)
