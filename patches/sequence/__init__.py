"""What of the prompt is left in each layer, slot by slot: plain data, no hooks."""
