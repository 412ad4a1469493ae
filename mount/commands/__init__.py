"""The commands of `atoll`, a module for each group.

Each module has `register`, which describes its commands to the parser; what a command needs
beyond that is imported when it runs, so that `atoll ps` does not wait for what `atoll up` needs.
A command returns its exit status, or raises an error that says what the user can do.
"""
