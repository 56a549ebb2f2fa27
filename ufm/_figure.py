"""`.plot()` of the records: the one place from which a lower floor reaches `ufm.figures`.

Figures lie above the records that they draw. They register here, by the type of the record, when they are
first asked for; until then nothing of matplotlib is imported.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@functools.singledispatch
def draw(record: Any, **options: Any) -> Figure:
    """The figure of a record; `ufm.figures` registers one function for each type."""
    raise TypeError(f"record: expected one that has a figure, got {type(record).__name__}")


def plot(record: Any, **options: Any) -> Figure:
    """A matplotlib figure of a record of this package."""
    import ufm.figures  # noqa: F401  (fills `draw`)

    return draw(record, **options)
