"""The networks, a module each, with the training loop, the optimizer and the cached data that they share."""
