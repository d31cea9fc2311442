"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that names the file or key, what was expected and what was found.

    The command line prints the message alone and exits with status 2. Violated internal invariants
    are asserts, never this.
    """
