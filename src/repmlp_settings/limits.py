"""Numbers that no command takes: not finite, too small, or so large that memory or processes run out."""

import math
from dataclasses import fields
from typing import Any

#: Largest values of settings that have their own limit; every other integer is below 2^31.
LIMITS = {"workers": 1024, "threads": 1024, "port": 65535, "seed": 2**32 - 1, "seeds": 2**32 - 1}
#: Smallest values.
LEAST = {"epochs": 1, "batch_size": 1, "accumulation": 1, "steps": 1}
LEAST |= {"workers": 0, "crop_padding": 0, "state_every": 0, "seed": 0, "seeds": 0}


def check_numbers(settings: Any) -> None:
    """Check each number of a command's settings, including those in lists.

    Raises:
        ValueError: if one is not finite, too small or too large, naming the setting, its value and the limit.
    """
    for field in fields(settings):
        least, most = LEAST.get(field.name, -math.inf), LIMITS.get(field.name, 2**31 - 1)
        own = getattr(settings, field.name)
        for value in own if isinstance(own, list) else [own]:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}, but has to be a finite number")
            if isinstance(value, int) and value < least:
                raise ValueError(f"{field.name} is {value}, but has to be {least} or more")
            if isinstance(value, int) and abs(value) > most:
                raise ValueError(f"{field.name} is {value}, but has to be at most {most}")
