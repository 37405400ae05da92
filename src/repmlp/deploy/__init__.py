"""What one does with a converted model."""

from .timing import Timing, time_interleaved

__all__ = ["Timing", "time_interleaved"]
