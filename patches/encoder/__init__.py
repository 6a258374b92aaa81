"""Methods that act before the projector: on pixels, on patches, inside the vision tower."""
