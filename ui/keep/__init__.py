"""Keep what a visitor has made: files, history, settings inside pictures, links."""
