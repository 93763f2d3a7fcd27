"""Make the bundled model: data, networks, judging. Nothing at run time imports this package."""
