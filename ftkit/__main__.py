"""`python -m ftkit`: the command line."""

from .cli.main import main

main()
