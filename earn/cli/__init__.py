"""The `earn` command: one file per subcommand."""
