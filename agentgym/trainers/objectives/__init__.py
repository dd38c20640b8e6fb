"""Losses: pure functions on packed log-probabilities."""
