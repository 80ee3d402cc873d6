"""The machine as a value: devices, processes, and programs that run on them."""
