"""The output that users read: results as lines of text, and a checkpoint's report as an HTML page."""
