"""Stage-by-stage comparison of a build: which stage, and which block, first leaves its tolerance."""
