"""One question about pictures or clips in one call: an answer, a comparison, a conversation."""
