"""Show a run: the live view, its film, sketches and the opening."""
