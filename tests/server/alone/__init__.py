"""Tests that start what they need: engines, tools, and servers unlike the shared ones."""
