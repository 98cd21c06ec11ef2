"""The measuring programs: what the service promises in speed and memory, measured on this machine. Begin with `run.py`."""
