"""Our code with one mistake at a time, made by mutmut: does a unit test notice?"""
