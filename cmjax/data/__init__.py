"""Images for training and evaluation: sources of examples, and batches of them."""
