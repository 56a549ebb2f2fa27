"""Citations lead somewhere: to a numbered section of a page, and to a work in the list of sources."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("theory", "protocol")
GENERATED = {"_build", "_generated", "api", "jupyter_execute"}
FILES = sorted(
    path
    for folder in ("ufm", "tests", "benchmarks", "notebooks", "docs", "")
    for path in ROOT.glob(f"{folder}/**/*" if folder else "*.md")
    if path.suffix in (".py", ".ipynb", ".md") and not GENERATED & set(path.parts) and path != Path(__file__)
)
CODE = [path for path in FILES if path.suffix == ".py"]

NUMBER = r"\d+(?:\.\d+)*"
CITATION = re.compile(rf"docs/(theory|protocol)\.md,? sections? ({NUMBER}(?:(?:,| and|, and| to) {NUMBER})*)")
#: notes that are not part of the repository, by the names under which the code once cited them
ELSEWHERE = re.compile(r"\b(?:THEORY|PROTOCOL|MODELS_\d)\b")

#: authors and a year: "Zhou et al. 2022", "Chan, Golub & LeVeque 1983", "Conn, Gould & Toint (2000)"
WORK = re.compile(r"\b([A-Z][\w-]+)(?:(?:,? &|,? and|,) [A-Z][\w-]+| et al\.)*,? \(?((?:19|20)\d\d)\b")


def has_venue(work):
    """Whether the venue is named beside the year, as in "Leng et al., ICLR 2022"."""
    before_year = re.findall(r"[\w-]+", work)[-2]
    return before_year.isupper() or before_year in ("NeurIPS", "Letters")


def text_of(path):
    """The text of a file in one line, without the signs of comments."""
    return re.sub(r"\s*\n\s*(?:#:?\s*)?", " ", path.read_text("utf-8"))


def words_of(path):
    """Comments and strings of a Python file; the whole of another one."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING))


def headings(page):
    """The headings of a page below its title: (level, text)."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return [(len(marks) - 1, heading) for marks, heading in re.findall(r"^(##+) (.*)", text, re.M)]


def sources():
    """(first author, year) -> the row of the last section of docs/theory.md."""
    text = (ROOT / "docs" / "theory.md").read_text("utf-8")
    rows = re.findall(r"^- \*\*([\w-]+)(?: et al\.)? (\d{4})\*\*(.*(?:\n  .*)*)", text, re.M)
    return {(author, year): row for author, year, row in rows}


@pytest.mark.parametrize("page", PAGES)
def test_the_sections_of_a_page_are_numbered_in_order(page):
    section = part = 0
    for level, heading in headings(page):
        section, part = (section + 1, 0) if level == 1 else (section, part + 1)
        assert heading.startswith(f"{section}. " if level == 1 else f"{section}.{part} "), heading
    assert section >= 5


def test_each_citation_of_a_section_finds_it():
    known = {page: {re.match(NUMBER, heading)[0] for _, heading in headings(page)} for page in PAGES}
    found = [
        (path.name, page, number)
        for path in FILES
        for page, numbers in CITATION.findall(text_of(path))
        for number in re.findall(NUMBER, numbers)
    ]
    assert len(found) > 30
    assert [citation for citation in found if citation[2] not in known[citation[1]]] == []


def test_notes_outside_the_repository_are_not_cited():
    assert [path.name for path in FILES if ELSEWHERE.search(words_of(path))] == []


def test_the_code_cites_a_page_together_with_its_section():
    def bare(path):
        text = text_of(path)
        return len(re.findall(r"docs/(?:theory|protocol)\.md", text)) - len(CITATION.findall(text))

    assert [path.name for path in CODE if bare(path)] == []


def test_each_work_that_the_code_cites_is_listed():
    """Or it is cited together with its venue."""
    listed = sources()
    works = [(path.name, work) for path in CODE for work in WORK.finditer(text_of(path))]
    cited = [
        (name, work[0]) for name, work in works if work.groups() not in listed and not has_venue(work[0])
    ]
    assert len(works) > 30
    assert cited == []


def test_a_work_has_one_number_at_arxiv():
    listed = re.findall(r"arXiv:(\d{4}\.\d{5})", " ".join(sources().values()))
    assert len(listed) == len(set(listed)) >= 4
    linked = {
        number for path in FILES for number in re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", text_of(path))
    }
    assert linked <= set(listed)
    paper = re.search(r"arXiv:([\d.]+)", sources()["Zhou", "2022"])[1].rstrip(".")
    assert re.findall(r"arXiv:([\d.]+)", (ROOT / "CITATION.cff").read_text("utf-8")) == [paper]
