"""Which method for a model and a user's pictures, found without labels: `vlmcompress tune`."""
