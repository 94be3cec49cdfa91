"""Images for training and evaluation: sources of examples, and batches of them. Stands on no other part of cmjax."""
