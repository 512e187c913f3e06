"""The machine: devices, memory, progress bars and files."""
