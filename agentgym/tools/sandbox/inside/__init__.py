"""What runs inside a sandbox: a worker that forks for every call. Standard library only, for nothing else is there."""
