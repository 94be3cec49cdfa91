"""How good samples are: distances between sets of images, features to measure them in, tables and images."""
