"""`python -m wovr_cli`: the `wovr` command of this interpreter."""

from wovr_cli.main import main

main()
