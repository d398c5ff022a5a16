"""The command line: `sngd-compile`, and `python -m sngd_compile`."""
