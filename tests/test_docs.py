"""The pages are built without a warning, and what their Markdown shows is Python that compiles.

The cells of the pages run where the pages are built for reading (`.ci/run`); here they are left alone.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ufm

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))

NEEDED = ("sphinx", "furo", "myst_nb")
missing = [name for name in NEEDED if not importlib.util.find_spec(name)]

BUILD = "-m sphinx -W --keep-going -n -q -b html -D nb_execution_mode=off"


def test_the_pages_are_built_without_a_warning(tmp_path):
    if missing:
        pytest.skip(f"the extra 'docs' is not installed: no {', '.join(missing)}")
    command = [sys.executable, *BUILD.split(), str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "html" / "api" / "ufm.html").read_text()
    for name in ufm.__all__:
        kind = type(getattr(ufm, name)).__name__
        assert kind == "module" or f'id="ufm.{name}"' in reference, name
    assert "cdn" not in (tmp_path / "html" / "theory.html").read_text().lower()  # readable without a network


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_python_of_a_page_compiles(page):
    text = page.read_text()
    for cell in re.findall(r"^```(?:\{code-cell\}|python)\n(.*?)^```", text, re.M | re.S):
        compile(re.sub(r"^:\w+:.*\n", "", cell), page.name, "exec")
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", text)
