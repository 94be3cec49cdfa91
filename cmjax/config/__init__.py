"""Reads configurations into plain objects: the only reader of them, which raises all errors of theirs."""
