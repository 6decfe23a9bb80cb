"""The command line: one thin module per verb. ``main`` registers them."""
