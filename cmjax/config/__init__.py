"""From a configuration to plain objects: the only reader of configurations, and where their errors are raised."""
