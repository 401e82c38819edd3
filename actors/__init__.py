"""What runs inside Ray processes: the session actor, turns, and the node agent."""
