"""Evaluates samples: metrics of any number of images, results of runs, and diagnosis of models."""
