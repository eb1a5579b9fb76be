"""A kit: all that a Jetson Orin needs to make an engine by itself, with one script and nothing to download."""
