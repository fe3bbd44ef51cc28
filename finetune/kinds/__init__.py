"""The kinds of task. A kind is one file here: a subclass of `base.Kind` says all that depends on it, and the rest of
the room (training, seeds, search, tables, files, the command line) is the same for every kind."""
