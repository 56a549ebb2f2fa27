"""CONTRIBUTING draws the house as it stands: its floors are those that are checked, and its files exist."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def section(heading):
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def names(row):
    return set(re.findall(r"`(\w+)`", row.split("|")[1]))


def test_the_floors_are_those_that_are_checked():
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    layers = config["importlinter:contract:floors"]["layers"].split("\n")
    checked = [set(re.findall(r"\w+", layer)) for layer in layers if layer]
    drawn = [names(row) for row in section("The house").splitlines() if row.startswith("| `")]
    assert drawn == checked[::-1]


def test_every_file_to_touch_exists():
    paths = re.findall(r"`((?:ufm|tests|benchmarks|docs)/[\w./]*)`", section("Files to touch"))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
