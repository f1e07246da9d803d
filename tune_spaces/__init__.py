"""What a sweep may try: Ray Tune search spaces, keyed by recipe field."""
