"""The laws of DESIGN.md, checked on a model of the user: `vlmcompress.check`."""
