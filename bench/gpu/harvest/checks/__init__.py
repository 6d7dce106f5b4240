"""Each launch on its own, against the reference, with the reference's inputs.

One file per launch, so that one that is wrong has one name. A check that fails says where it first
is wrong, and the next one is tried all the same.
"""
