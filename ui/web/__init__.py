"""Answer HTTP that is not Gradio's: host check, headers, health, metrics."""
