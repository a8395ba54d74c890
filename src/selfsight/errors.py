"""The one error a user's mistake raises. The command line prints its sentence and exits with 2."""


class SelfsightError(Exception):
    """Names the thing, the value and the way out, in one sentence."""
