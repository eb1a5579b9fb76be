"""The commands: each reads one artifact, runs the work, and publishes the next artifact."""
