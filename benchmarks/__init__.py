"""Measure speed and exactness beside diffusers, on this machine."""
