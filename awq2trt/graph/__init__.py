"""Work on exported graphs: reading them, inlining bodies, and rewriting them for an executor."""
