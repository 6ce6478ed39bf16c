"""The base of all rooms: errors, files, checksums, signals, progress, devices, batches."""
