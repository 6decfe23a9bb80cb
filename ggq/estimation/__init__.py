"""Predict what a model will weigh, need and do, before a byte of its weights is downloaded."""
