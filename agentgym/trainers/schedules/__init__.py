"""When to roll out, when to learn, how stale is too stale."""
