"""Text of strangers in Markdown: names of recipes and corpora show as they are, and format nothing."""

import re

from foldray.runtime.terminal import printable

LONGEST = 200
"""Characters of a name that are shown."""


def code(text: str) -> str:
    """Return a name as a code span for a cell of a Markdown table, or a dash if it is empty.

    Nothing inside a code span is Markdown or HTML. The span's fence is longer than any run of backticks in the name.

    Example:
        >>> code("<b>|`")
        '`` <b>\\\\|` ``'
    """
    shown = printable(text)[:LONGEST].strip()
    if not shown:
        return "-"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    inner = f" {shown} " if "`" in shown else shown
    return f"{fence}{inner}{fence}".replace("|", "\\|")
