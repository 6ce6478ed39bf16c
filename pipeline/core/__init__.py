"""What every room stands on: errors, files, checksums, signals, progress, devices, batches."""
