"""The commands, one a file: parse, call, render. Heavy libraries are imported when a command runs."""
