"""Pictures of 192x192 pixels with icons, shapes, writing, lists and charts: 576 visual tokens."""
