"""The prefill and what follows: cuts between the layers of the decoder."""
