"""Turn controls into a request, and settings back into controls."""
