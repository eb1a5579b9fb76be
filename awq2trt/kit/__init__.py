"""A kit: everything that a Jetson Orin needs to make an engine by itself, with one script and no downloads."""
