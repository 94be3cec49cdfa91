"""Processes, devices, compiled programs and files. Stands below all other folders and imports none of them."""
