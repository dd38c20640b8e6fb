"""Environments, registered with Gymnasium by this package's entry points."""
