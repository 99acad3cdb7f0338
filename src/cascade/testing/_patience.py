"""The limit of every wait in `cascade.testing`."""

PATIENCE = 60.0
"""Seconds after which the event that a test waits for is taken not to come. It is long, for a loaded machine in CI."""
