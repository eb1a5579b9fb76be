"""Compares the stages of a build one by one: which stage, and which block, is the first beyond its tolerance."""
