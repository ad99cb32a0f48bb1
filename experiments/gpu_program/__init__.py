"""Compiles programs for a GPU that this machine lacks, and counts what they do."""
