"""What a call costs: the shape of a model, its work, and budgets in FLOPs or milliseconds."""
