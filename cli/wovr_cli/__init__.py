"""The command line of wovr: `wovr --help`."""
