"""Finding drawn pages with fewer vectors: how good, and how fast."""
