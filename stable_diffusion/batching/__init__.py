"""Draw many requests with one network: engine, run handles, previews."""
