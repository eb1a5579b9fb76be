"""Works on exported graphs: reads them, inlines function bodies, and rewrites them for an executor."""
