"""Audits: what a declared adversary achieves against a protection."""
