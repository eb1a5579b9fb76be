"""This machine: devices, memory, the plugin library, what is missing, and how fast its kernels are."""
