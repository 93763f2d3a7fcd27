"""Change a network without training it: LoRA and its relatives, textual inversion."""
