"""Where things are kept, and when they count as kept.

The one guarantee of this package: what a reader finds at a location is complete, was written
exactly once, and is byte for byte what was committed. No algorithm lives here.
"""
