"""Tools that environments share."""
