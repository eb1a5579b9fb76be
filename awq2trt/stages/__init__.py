"""The commands: each reads one artifact, has the work done, and publishes the next."""
