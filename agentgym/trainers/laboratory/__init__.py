"""The laboratory: a method against its baseline, from the same start, at an equal budget, over several seeds."""
