"""Decoders of video files: what each needs, and how far it can be trusted."""
