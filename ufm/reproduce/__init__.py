"""Every claim of the paper about the unconstrained feature model, measured and reported on one page.

    statements (SHELF) -> jobs -> records, one file each -> findings with verdicts -> report

The command is `ufm reproduce`, the function `reproduce`.
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
