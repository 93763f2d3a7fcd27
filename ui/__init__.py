"""Serve the page: the form, the runs, the stage and the files to keep."""
