"""A whole deployment on one machine: `torpor dev`."""
