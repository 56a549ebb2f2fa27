"""Everything the paper claims about the unconstrained feature model, measured here, as one report.

    statements (SHELF) -> jobs -> records, one file each -> findings with verdicts -> report

`ufm reproduce` is the command; `reproduce` the function.
"""

from ufm.figures import Curve, Panel
from ufm.reproduce._records import Finding, Instance, Job, Outcome, Row, Table, Unmeasured
from ufm.reproduce._report import Reproduction, reproduce
from ufm.reproduce._schema import SCHEMA, validate
from ufm.reproduce.statements import STATEMENTS, UNMEASURED

__all__ = [
    "SCHEMA",
    "STATEMENTS",
    "UNMEASURED",
    "Curve",
    "Finding",
    "Instance",
    "Job",
    "Outcome",
    "Panel",
    "Reproduction",
    "Row",
    "Table",
    "Unmeasured",
    "reproduce",
    "validate",
]
