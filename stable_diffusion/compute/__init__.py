"""Compute the same networks faster: packed weights, precision, OpenVINO."""
