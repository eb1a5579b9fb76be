"""Directories on disk: manifests, how artifacts are published, and the small files beside every model."""
