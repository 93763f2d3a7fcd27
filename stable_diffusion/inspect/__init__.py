"""Take a run apart: recordings and their branches, guesses, both halves of guidance, heat maps, painted latents."""
