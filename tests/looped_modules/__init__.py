"""Small looped models of our own, one a file, with the call pattern of one family of real ones each.

Every file has a class whose forward pass keeps, by its own loop variables and without hooks, a trace of the states that
it makes, and `looped(model=None, ...)`, which describes it by paths. Tests find the files by themselves.
"""
