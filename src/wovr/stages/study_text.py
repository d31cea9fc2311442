"""How the study's tables write rates and rows."""

from __future__ import annotations

from wovr.metrics.success import Rate


def rate_text(rate: Rate) -> str:
    """A rate in per cent, with its interval and n."""
    low, high = rate.ci95
    return f"{100 * rate.rate:.1f} % ({100 * low:.1f} to {100 * high:.1f}), n = {rate.n}" if rate.n else "–"


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table, the first being its header."""
    return "\n".join(
        f"| {' | '.join(row)} |" + ("\n|" + "---|" * len(row) if number == 0 else "") for number, row in enumerate(rows)
    )
