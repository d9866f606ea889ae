"""The commands of `python -m launch`: a module each, whose `run` takes the parsed words and gives the exit code."""
