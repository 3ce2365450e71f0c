"""The refusal of own data."""


class OwnDataError(ValueError):
    """Own data cannot be put into a config; says why, and what can be done."""
