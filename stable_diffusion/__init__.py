"""Stable Diffusion 1.x and 2.x, written from scratch in PyTorch."""
