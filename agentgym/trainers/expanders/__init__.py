"""Where the next rollouts are spent."""
