"""What torch's own allocator hands out, to hold counts against that were made without running."""

from collections.abc import Callable

import torch


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes on the CPU that ``run`` has at once, beyond those that were there before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU
    ]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most
