"""Keep a visitor's pictures: files, history, settings inside pictures, links."""
