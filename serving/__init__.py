"""One page, many replicas of the model behind it, on Ray Serve: see docs/many-visitors.md."""

import os

# Before ray is imported. Nothing about a visit, or about this machine, is sent anywhere.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
