"""Reading models: settings, weight files, single files, the hub and the tokenizer."""
