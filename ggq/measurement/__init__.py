"""Measurements: quality, speed and memory of GGUF files, each with its samples and its uncertainty."""
