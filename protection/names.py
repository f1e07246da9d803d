"""What to say where a name that somebody wrote is none of those that there are."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[object], *, most: int = 1) -> str:
    """Return a hint at what of ``known`` the ``word`` is probably meant to be; empty if nothing is.

    Args:
        word: as it was written; its case is of no account.
        known: what there is.
        most: suggestions to make.
    """
    by_lower = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=most)
    return f" (did you mean {' or '.join(by_lower[name] for name in near)}?)" if near else ""
