"""The command line: `python -m vmoe_study COMMAND` or `vmoe-study COMMAND`."""
