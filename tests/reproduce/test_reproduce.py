"""`ufm reproduce`: an interrupted run continues, the page is complete, and a browser shows it."""

from __future__ import annotations

import errno
import html
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from tolerances import HANG

from ufm import losses, reproduce
from ufm._cli import main
from ufm.reproduce import (
    SCHEMA,
    STATEMENTS,
    Curve,
    Job,
    Outcome,
    Panel,
    Row,
    Table,
    _figures,
    _runner,
    statements,
    validate,
)
from ufm.reproduce._formulas import mathml
from ufm.reproduce._records import compared

QUICK_AND_FULL = ("quick", "full")


# --- the shelf ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", STATEMENTS, ids=lambda row: row.id)
def test_a_row_is_whole(row):
    assert re.fullmatch(r"[a-z0-9-]+", row.id)
    assert [other.id for other in STATEMENTS].count(row.id) == 1
    assert row.formulas
    for formula in row.formulas:
        ElementTree.fromstring(mathml(formula))  # well-formed
    for level in QUICK_AND_FULL:
        names = [job.name for job in row.jobs(level)]
        assert names
        assert len(set(names)) == len(names)
        assert all(job.cost > 0 for job in row.jobs(level))
    assert sum(1 for _ in row.jobs("quick")) <= sum(1 for _ in row.jobs("full"))
    assert bool(row.correction) == (row.known == "holds with a correction")
    assert bool(row.undecided) == (row.known == "open")


def test_every_loss_that_the_paper_does_not_have_is_measured():
    (row,) = (row for row in STATEMENTS if row.id == "other-losses")
    jobs = [job.name for job in row.jobs("quick")]
    others = [repr(losses.get(name)) for name in losses.LOSSES if name not in losses.PAPER]
    assert set(others) < set(jobs)


# --- running, resuming, refusing --------------------------------------------------------------------------


class Shelf:
    """Two toy rows whose jobs count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.crash: set[str] = set()
        self.stop: set[str] = set()

    def measure(self, name: str) -> Outcome:
        self.calls.append(name)
        if name in self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if name in self.crash:
            raise RuntimeError(f"{name} broke")
        deviation = 1e-3 if name == "b2" else 1e-12
        table = Table("Values", ("job", "value"), ((name, "<1 & 2>"),))
        curve = Curve("it", "measured", [1.0, 2.0], [0.5, 0.25])
        return Outcome((compared("what <it> is", {"job": name}, deviation, 1e-9),), (table,), (curve,))

    def jobs(self, names, level):
        yield from (Job(name, partial(self.measure, name)) for name in names)

    def rows(self) -> tuple[Row, ...]:
        shared = {"paper": "a < b", "formulas": (r"a \le b",), "measured": "both", "section": "Lemma 0"}
        panels = (Panel("it", "x", "y"),)
        first, second = partial(self.jobs, ("a1", "a2")), partial(self.jobs, ("b1", "b2"))
        return (
            Row(id="first", title="First", known="holds", jobs=first, panels=panels, **shared),
            Row(id="second", title="Second", known="fails", jobs=second, part="beyond", **shared),
        )


@pytest.fixture
def shelf(monkeypatch):
    made = Shelf()
    monkeypatch.setattr(statements, "STATEMENTS", made.rows())
    monkeypatch.setattr(reproduce, "STATEMENTS", made.rows())
    return made


def ufm(*arguments: object):
    return CliRunner().invoke(main, ["reproduce", "--quick", *map(str, arguments)])


def test_a_run_goes_on_where_it_stopped(shelf, tmp_path):
    shelf.stop = {"b1"}
    stopped = ufm("--out", tmp_path)
    assert stopped.exit_code == 130
    assert f"to continue: ufm reproduce --quick --out {tmp_path}\n" in stopped.output
    assert shelf.calls == ["a1", "a2", "b1"]
    partial_data = json.loads((tmp_path / "report.json").read_text())
    validate(partial_data)
    assert not partial_data["complete"]
    assert not partial_data["consistent"]
    assert [row["verdict"] for row in partial_data["rows"]] == ["holds", "unfinished"]
    assert [row["missing"] for row in partial_data["rows"]] == [0, 2]
    assert "Interrupted." in (tmp_path / "report.html").read_text()
    shelf.stop = set()
    done = ufm("--out", tmp_path)
    assert done.exit_code == 0
    assert shelf.calls == ["a1", "a2", "b1", "b1", "b2"]
    again = ufm("--out", tmp_path, "--json")
    assert len(shelf.calls) == 5  # all kept
    data = json.loads(again.stdout)
    assert [row["verdict"] for row in data["rows"]] == ["holds", "fails"]
    assert data["consistent"]
    assert data["complete"]
    validate(data)
    assert "Interrupted." not in (tmp_path / "report.html").read_text()
    assert ufm("--out", tmp_path, "--fresh").exit_code == 0
    assert len(shelf.calls) == 9
    whole = json.loads((tmp_path / "report.json").read_text())
    timed = {"seconds", "created"}
    for one in (data, whole):
        one["rows"] = [{k: v for k, v in row.items() if k not in timed} for row in one["rows"]]
    assert {k: data[k] for k in data if k not in timed} == {k: whole[k] for k in whole if k not in timed}


def test_a_crash_is_reported_and_tried_again(shelf, tmp_path):
    shelf.crash = {"a1"}
    done = ufm("--out", tmp_path)
    assert done.exit_code == 1
    data = json.loads((tmp_path / "report.json").read_text())
    validate(data)
    assert [row["verdict"] for row in data["rows"]] == ["error", "fails"]
    assert "RuntimeError: a1 broke" in data["rows"][0]["errors"][0]["traceback"]
    assert "a1 broke" in (tmp_path / "report.html").read_text()
    assert data["rows"][0]["count"] == 1  # the other job's
    shelf.crash = set()
    assert ufm("--out", tmp_path).exit_code == 0
    assert shelf.calls == ["a1", "a2", "b1", "b2", "a1"]


def test_a_damaged_record_is_measured_again(shelf, tmp_path):
    ufm("--out", tmp_path)
    (file,) = tmp_path.glob("records/quick/first/a2-*.json")
    file.write_text('{"row": "fi')
    assert ufm("--out", tmp_path).exit_code == 0
    assert shelf.calls[4:] == ["a2"]


def test_other_code_refuses_the_folder(shelf, tmp_path, monkeypatch):
    ufm("--out", tmp_path)
    other = _runner.fingerprint() | {"code": "0"}
    monkeypatch.setattr(_runner, "fingerprint", lambda: other)
    refused = ufm("--out", tmp_path)
    assert refused.exit_code == 2
    assert "of another (code)" in refused.output
    assert "--fresh" in refused.output
    assert len(shelf.calls) == 4
    assert ufm("--out", tmp_path, "--fresh").exit_code == 0
    assert len(shelf.calls) == 8


def test_bad_input(shelf, tmp_path):
    for arguments, words in (
        (["--only", "frist"], "only: expected one of first, second, got 'frist'; did you mean 'first'"),
        (["--runs", tmp_path / "none"], "runs: expected a folder of runs"),
    ):
        refused = ufm("--out", tmp_path / "new", *arguments)
        assert refused.exit_code == 2
        assert words in refused.output
        assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    refused = ufm("--out", tmp_path / "file")
    assert refused.exit_code == 2
    assert "out: expected a folder that can be written" in refused.output
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.html").write_text("mine")
    refused = ufm("--out", tmp_path / "theirs")
    assert refused.exit_code == 2
    assert (tmp_path / "theirs" / "report.html").read_text() == "mine"
    assert shelf.calls == []
    with pytest.raises(ValueError, match="level: expected one of quick, full, got 'quik'"):
        reproduce.reproduce(tmp_path / "x", level="quik")


def test_a_full_disk_keeps_what_is_finished(shelf, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if "b1" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    stopped = ufm("--out", tmp_path)
    assert stopped.exit_code == 2
    assert "No space left on device" in stopped.output
    assert "finished before is kept" in stopped.output
    assert not [f for f in tmp_path.rglob(".*") if "b1" in f.name]
    monkeypatch.setattr(os, "replace", replace)
    assert ufm("--out", tmp_path).exit_code == 0
    assert shelf.calls == ["a1", "a2", "b1", "b1", "b2"]


def test_a_disk_that_fills_up_with_figures_keeps_the_measurements(shelf, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_figures.figures, "save", full)
        stopped = ufm("--out", tmp_path)
    assert stopped.exit_code == 2
    assert "first.png: No space left on device; what was measured is kept" in stopped.output
    assert ufm("--out", tmp_path).exit_code == 0
    assert shelf.calls == ["a1", "a2", "b1", "b2"]


def test_only_and_list(shelf, tmp_path):
    done = ufm("--out", tmp_path, "--only", "second")
    assert done.exit_code == 0
    assert shelf.calls == ["b1", "b2"]
    listed = ufm("--list")
    assert [line.split()[0] for line in listed.output.splitlines()] == ["first", "second"]


def test_one_part(shelf, tmp_path):
    for part, ids, heading in (("paper", ["first"], "The paper"), ("beyond", ["second"], "Beyond the paper")):
        assert ufm("--out", tmp_path / part, "--part", part).exit_code == 0
        data = json.loads((tmp_path / part / "report.json").read_text())
        assert [row["id"] for row in data["rows"]] == ids
        assert data["command"] == f"ufm reproduce --quick --part {part} --out {part}"
        assert f"<h2>{heading}</h2>" not in (tmp_path / part / "report.html").read_text()
        listed = ufm("--list", "--part", part)
        assert [line.split()[0] for line in listed.output.splitlines()] == ids
    assert ufm("--out", tmp_path / "all").exit_code == 0
    text = (tmp_path / "all" / "report.html").read_text()
    assert text.index("<h2>The paper</h2>") < text.index("<h2>Beyond the paper</h2>")
    other = ufm("--out", tmp_path / "other", "--part", "paper", "--only", "second")
    assert other.exit_code == 2
    assert "only: expected one of first, got 'second'" in other.output
    with pytest.raises(ValueError, match="part: expected one of all, paper, beyond, got 'both'"):
        reproduce.reproduce(tmp_path / "x", part="both")


# --- the report ------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Ids, links and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.sources += [found[name] for name in ("src", "srcset") if name in found]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return reproduce.reproduce(out, only=("figure-10", "figure-9"), progress=False)


def test_the_report_of_two_rows(report):
    assert report.consistent
    assert [finding.statement.id for finding in report.findings] == ["figure-9", "figure-10"]
    data = json.loads((report.out / "report.json").read_text())
    validate(data)
    assert all(row["command"].startswith("ufm reproduce --quick --only ") for row in data["rows"])
    for row in data["rows"]:
        for figure in row["figures"]:
            assert (report.out / figure["png"]).read_bytes().startswith(b"\x89PNG")
            assert (report.out / figure["pdf"]).read_bytes().startswith(b"%PDF")
    assert str(report).isascii()
    assert "2 holds" in str(report)
    named = [entry["what"] for entry in data["unmeasured"]]
    assert named == [entry.what for entry in reproduce.UNMEASURED]


def test_the_page_is_whole_and_needs_no_network(report):
    text = (report.out / "report.html").read_text()
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script" not in text
    assert not re.search(r'(src|href)="https?:', text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert len(text) < 5e6
    for found in re.findall(r"<math.*?</math>", text):
        ElementTree.fromstring(found)


def test_words_are_escaped(shelf, tmp_path):
    ufm("--out", tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "&lt;1 &amp; 2&gt;" in text
    assert "what &lt;it&gt; is" in text
    assert "<it>" not in text


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 1, r"report\.version: 3 was expected"),
        (("rows", 0, "verdict"), "fine", r"report\.rows\[0\]\.verdict: 'fine' is not one of \['holds', "),
        (("rows", 0, "count"), True, r"report\.rows\[0\]\.count: True is not of type 'integer'"),
        (("rows", 0, "worst"), {}, r"report\.rows\[0\]\.worst: 'what' is a required property"),
        (("rows", 1, "more"), 1, r"report\.rows\[1\]: Additional properties .*'more' was unexpected"),
    ],
)
def test_the_schema_refuses_what_is_wrong(report, path, value, words):
    wrong = json.loads((report.out / "report.json").read_text())
    *parents, last = path
    inner = wrong
    for name in parents:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(ValueError, match=words):
        validate(wrong)


# --- in a browser ------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--virtual-time-budget=10000"),
)
#: What a page is asked by itself, in a copy in a frame as wide as a phone or a screen: no window is narrower
#: than 500 pixels. Its answer goes to the page around it. Contrast is that of WCAG 2: 4.5 for text.
PROBE = """<script>const bad = [];
addEventListener("error", e => { if (e.target !== window) bad.push("not loaded " + e.target.src); }, true);
addEventListener("load", () => { const wide = innerWidth;
const rgb = color => color.match(/[0-9.]+/g).map(Number);
const light = color => { const [r, g, b] = rgb(color).map(x => x / 255)
  .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = node => { for (; node; node = node.parentElement) { const color = getComputedStyle(node)
  .backgroundColor; if (rgb(color)[3] !== 0) return color; } return "rgb(255, 255, 255)"; };
const scrolls = node => { for (; node; node = node.parentElement)
  if (/auto|scroll/.test(getComputedStyle(node).overflowX)) return true; return false; };
const dark = light(behind(document.body)) < 0.1;
if (dark !== DARK) bad.push(dark ? "dark" : "light");
if (document.documentElement.scrollWidth > wide) bad.push("wider than the window");
for (const i of document.images) { const box = i.getBoundingClientRect();
  if (!i.complete || !i.naturalWidth || box.width < 100 || box.height < 50) bad.push("image " + i.alt);
  if (box.right > wide && !scrolls(i)) bad.push("image cut off " + i.alt); }
document.documentElement.style.scrollBehavior = "auto";
for (const a of document.links) { const to = document.getElementById(a.hash.slice(1));
  if (a.origin !== location.origin || a.pathname !== location.pathname || !to) {
    bad.push("link " + a.getAttribute("href")); continue; }
  a.click(); const top = to.getBoundingClientRect().top;
  if (location.hash !== a.hash || top < -1 || top > innerHeight)
    bad.push("link lands at " + top + " " + a.hash); }
for (const node of document.querySelectorAll("body *")) {
  if (![...node.childNodes].some(c => c.nodeType === 3 && c.data.trim())) continue;
  if (!node.getClientRects().length) continue;
  const box = node.getBoundingClientRect(), a = light(getComputedStyle(node).color), b = light(behind(node));
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) bad.push("contrast " + contrast.toFixed(1) + ": " + node.textContent.slice(0, 40));
  if (box.right > wide + 1 && !scrolls(node)) bad.push("cut off: " + node.textContent.slice(0, 40)); }
parent.postMessage(name + ": " + ([...new Set(bad)].join("; ") || "fine"), "*"); });</script>"""
FRAMES = """<!doctype html><meta name="color-scheme" content="light dark"><body><pre></pre><script>
addEventListener("message", e => document.querySelector("pre").append(e.data + "\\n"));</script>"""
WIDTHS = {"phone": 390, "screen": 1280}
FAR = '<div style="overflow: clip"><p style="width: 1500px; max-width: none">far</p></div>'
#: a copy's change, and what is said of it in the dark
BREAKS = {
    "image": ('src="data:image/png;base64,', 'src="data:image/png;base64,AAAA', "image "),
    "link": ('href="#figure-10"', 'href="#figure-11"', "link #figure-11"),
    "elsewhere": ('href="#figure-10"', 'href="other.html#figure-10"', "link other.html#figure-10"),
    "off-screen": (
        '<section id="figure-10"',
        '<section style="position: fixed; top: 9999px" id="figure-10"',
        "link lands at ",
    ),
    "wide": ("<h2>", '<h2 style="width: 1300px; max-width: none">', "wider than the window"),
    "cut": ("</header>", f"{FAR}</header>", "cut off: far"),
    "faint": ("--soft: #a5abb4", "--soft: #555", "contrast 2."),
    "never-dark": ("--paper: #15171b", "--paper: #fff", "light; contrast "),
    "error": ("</body>", "<script>null.it</script></body>", "Uncaught TypeError"),
    "warning": ("</body>", "<script>console.warn('no')</script></body>", "CONSOLE"),
    "request": ("</body>", "<script src='none.js'></script></body>", "not loaded file:"),
}


def browse(pages: dict[str, tuple[str, int]], folder: Path, *, dark: bool) -> dict[str, str]:
    """What the probe and the console say of each page, given by name as its text and width."""
    frames = FRAMES
    for name, (text, width) in pages.items():
        probe = PROBE.replace("DARK", str(dark).lower())
        (folder / f"{name}.html").write_text(text.replace("<head>", "<head>" + probe))
        style = f"width: {width}px; height: 800px; border: 0"
        frames += f'<iframe name="{name}" src="{name}.html" style="{style}"></iframe>'
    (folder / "frames.html").write_text(frames)
    done = in_chromium(folder, dark, "--dump-dom", (folder / "frames.html").as_uri())
    shown = html.unescape(done.stdout)
    found = {name: "".join(re.findall(rf"^(?:.*<pre>)?{name}: (.*)$", shown, re.M)) for name in pages}
    for line in re.findall("CONSOLE.*", done.stderr):
        (name,) = re.findall(r"([a-z-]+)\.html", line)
        found[name] += f" {line}"
    return found


def in_chromium(folder: Path, dark: bool, *what: str) -> subprocess.CompletedProcess[str]:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *QUIET, scheme, f"--user-data-dir={folder / 'user'}", *what]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)


@needs_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(report, dark, tmp_path):
    text = (report.out / "report.html").read_text()
    pages = {name: (text, width) for name, width in WIDTHS.items()}
    assert browse(pages, tmp_path, dark=dark) == dict.fromkeys(WIDTHS, "fine")


@needs_a_browser
def test_a_partial_page_with_a_crash_in_a_browser(shelf, tmp_path):
    shelf.crash, shelf.stop = {"a1"}, {"b2"}
    assert ufm("--out", tmp_path).exit_code == 130
    text = (tmp_path / "report.html").read_text().replace("<details", "<details open")
    assert "a1 broke" in text
    pages = {name: (text, width) for name, width in WIDTHS.items()}
    assert browse(pages, tmp_path, dark=True) == dict.fromkeys(WIDTHS, "fine")


@needs_a_browser
def test_the_browser_sees_what_is_broken(report, tmp_path):
    text = (report.out / "report.html").read_text()
    assert all(old in text for old, _, _ in BREAKS.values())
    pages = {name: (text.replace(old, new, 1), 1280) for name, (old, new, _) in BREAKS.items()}
    found = browse(pages, tmp_path, dark=True)
    assert {name: said for name, said in found.items() if BREAKS[name][2] not in said} == {}


@needs_a_browser
def test_the_printed_page(report, tmp_path):
    printed = tmp_path / "page.pdf"
    page = (report.out / "report.html").as_uri()
    in_chromium(tmp_path, True, "--no-pdf-header-footer", f"--print-to-pdf={printed}", page)
    assert printed.read_bytes().startswith(b"%PDF")
