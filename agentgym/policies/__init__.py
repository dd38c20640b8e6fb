"""Who acts: policies that write the actions of an agent."""
