"""SHELF of statements beyond the paper: what others say about this model and its extensions.

A row is as in `statements.py`; its `paper` is the cited work, in our words. To add a statement, add a row.
"""

from __future__ import annotations

from ufm.reproduce._records import Row

#: The rows, in the order of the report.
BEYOND: tuple[Row, ...] = ()
