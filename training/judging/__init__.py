"""What the trained model draws: sheets to look at, and measures."""
