"""Checkpoints, and where in a model quantization happens."""
