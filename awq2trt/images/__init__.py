"""Images: reads files as RGB, and prepares them like a model's own processor."""
