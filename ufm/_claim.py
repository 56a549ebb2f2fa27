"""Claims: statements measured against a tolerance, by one loop, with a verdict and the reason for it.

`ufm.verify` measures them at a solution and `ufm.landscape.verify` over critical points. A statement whose
assumptions are not met is "not applicable", with the reason, and never "holds".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from ufm._sheet import Printed, Sheet, finite

Verdict = Literal["holds", "fails", "not applicable"]

#: what the statements of one shelf are measured on
Facts = TypeVar("Facts")


class Claim(NamedTuple):
    """One statement, measured."""

    name: str
    statement: str
    value: float | None  # a deviation, zero where the statement is exact; None: not measured
    tolerance: float | None
    verdict: Verdict
    why: str  # what decided

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON. A number that is not finite becomes null, and `why` says what it was."""
        data = self._asdict()
        for name in ("value", "tolerance"):
            number = data[name]
            if number is not None and finite(number) is None:
                data |= {name: None, "why": f"{self.why}; {name} is {number}".removeprefix("; ")}
        return data


def _applies(facts: Any) -> str:
    return ""


def _exceeds(facts: Any, tolerance: float) -> str:
    return f"the deviation exceeds {tolerance:.1e}"


class Statement(NamedTuple, Generic[Facts]):
    """A row of a shelf of statements: `measure` is a deviation, which must be within `tolerance`.

    Where `why_not` gives a reason, an assumption is not met and nothing is measured.
    """

    name: str
    statement: str
    measure: Callable[[Facts], float]
    tolerance: Callable[[Facts], float]
    why_not: Callable[[Facts], str] = _applies
    reason: Callable[[Facts], str] = _applies  # why it holds, if there is more to say than the number
    failure: Callable[[Facts, float], str] = _exceeds  # why it fails, given the tolerance

    def claim(self, facts: Facts) -> Claim:
        """The statement, measured and judged."""
        why_not = self.why_not(facts)
        if why_not:
            return Claim(self.name, self.statement, None, None, "not applicable", why_not)
        value, tolerance = self.measure(facts), self.tolerance(facts)
        if value <= tolerance:  # false for NaN
            return Claim(self.name, self.statement, value, tolerance, "holds", self.reason(facts))
        return Claim(self.name, self.statement, value, tolerance, "fails", self.failure(facts, tolerance))


class Claims(Printed):
    """What every report of claims can do. A final class adds what the claims were measured on."""

    claims: tuple[Claim, ...]

    @property
    def passed(self) -> bool:
        """Whether no claim fails."""
        return all(claim.verdict != "fails" for claim in self.claims)

    def __getitem__(self, name: str) -> Claim:
        """The claim of that name."""
        return {claim.name: claim for claim in self.claims}[name]

    def headline(self) -> tuple[str, str]:
        """The title of the table, and a remark on what the claims were measured on."""
        raise NotImplementedError

    def sheet(self) -> Sheet:
        """One row for each claim that was measured; below, why others fail or do not apply."""
        title, remark = self.headline()
        rows = [
            (claim.name, claim.statement, _short(claim.value), _short(claim.tolerance), claim.verdict)
            for claim in self.claims
            if claim.verdict != "not applicable"
        ]
        notes = [
            *self._reasons("not applicable"),
            *self._reasons("fails"),
            remark,
            f"{'passed' if self.passed else 'FAILED'}: {tally([self])}",
        ]
        return Sheet(title, ("claim", "statement", "measured", "tolerance", "verdict"), rows, notes)

    def _reasons(self, verdict: Verdict) -> list[str]:
        """The claims with this verdict; those with the same reason share a line."""
        names: dict[str, list[str]] = {}
        for claim in self.claims:
            if claim.verdict == verdict:
                names.setdefault(claim.why, []).append(claim.name)
        return [f"{verdict}: {', '.join(those)} - {why}" for why, those in names.items()]


def tally(reports: Sequence[Claims]) -> str:
    """How many claims hold, fail and are not applicable, in words."""
    verdicts = [claim.verdict for report in reports for claim in report.claims]
    words = {"holds": "hold", "fails": "fail", "not applicable": "not applicable"}
    return ", ".join(f"{sum(v == verdict for v in verdicts)} {word}" for verdict, word in words.items())


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
