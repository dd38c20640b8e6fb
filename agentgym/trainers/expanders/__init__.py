"""Where rollouts are spent: plans that grow trees of turns."""
