"""The one message for a library that an extra would have brought."""


def missing_extra(extra: str, missing: ImportError) -> ImportError:
    """The error to raise when an optional library is absent; it names the extra and the command that fixes it."""
    return ImportError(
        f"{missing.name or missing} is not installed: run pip install 'cascade-runs[{extra}]'",
        name=missing.name,
    )
