"""What the code runs on: processes, the mesh of their devices. Stands below all and imports nothing of ours."""
