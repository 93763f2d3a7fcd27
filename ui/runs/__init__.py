"""Draw the runs of the page: backends, models, limits, errors."""
