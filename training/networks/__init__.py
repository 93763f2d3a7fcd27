"""What is trained: a module for each network, and what their training shares."""
