"""The artwork, named, drawn and composed into captioned examples."""
