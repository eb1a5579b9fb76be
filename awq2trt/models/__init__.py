"""Models as they come: where they are read from, what their family is, and the decoder that runs them."""
