"""From a recipe to a finished run directory: `prepare` makes the directory, `execute` (in `stages`) does the rest."""
