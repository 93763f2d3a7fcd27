"""Read a prompt in the words of a model's vocabulary."""
