"""Finding pages with late-interaction models: one vector a token, fewer of them, and MaxSim."""
