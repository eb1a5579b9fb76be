"""Images: files read as RGB, and what a model's own processor makes of them."""
