"""TFDS builders that need no TensorFlow. Importing a module here imports tensorflow_datasets; `tfds` does so late."""
