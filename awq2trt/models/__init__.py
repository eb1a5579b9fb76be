"""Models: where they are read from, which family they belong to, and the decoder that runs them."""
