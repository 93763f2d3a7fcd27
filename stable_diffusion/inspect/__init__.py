"""Take a run apart: heat maps, both halves of guidance."""
