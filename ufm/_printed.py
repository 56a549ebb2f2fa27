"""How a record shows itself: as a table, wherever it is looked at."""

from __future__ import annotations

from typing import Any


class Printed:
    """A record that `ufm._report.sheet` knows: text for `print`, rich in terminals, HTML in notebooks."""

    def __repr__(self) -> str:
        from ufm._report import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from ufm._report import as_table

        return as_table(self)

    def _repr_html_(self) -> str:
        from ufm._report import as_html

        return as_html(self)
