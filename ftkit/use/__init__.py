"""Use the models of a finished run: ask them one by one, or for the rows of a file. The run directory stays as it is."""
