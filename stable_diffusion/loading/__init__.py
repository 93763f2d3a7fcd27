"""The back room of `model_loader`: settings, checkpoint files, single files, the hub, the tokenizer."""
