"""Clusters, product quantisation and landmarks of an aligned run of tokens.

Everything here is a function of the segment's keys alone, bit for bit, so whoever
builds a segment's record builds the same one.
"""
