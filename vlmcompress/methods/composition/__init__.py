"""Methods by their specs, and pipelines of several methods over the stages."""
