"""The option --counts."""

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
