"""The text that `check` uses by default: prose, dialogue, figures, code and other languages, written for it.

Each kind exercises other parts of a model: its rare tokens, its numbers, its line breaks. A few hundred tokens are
enough, since every position of every block is compared.
"""

from __future__ import annotations

from typing import Final

DEFAULT_TEXT: Final = '''\
The harbour was quiet when the first boats came back. Marta counted them from the wall, as her father had done, and his
father before him: nine had gone out, and nine came home. "You always count," said the old man beside her. "What would
you do if there were only eight?" She thought about it for a while. "Count again," she said, "and then I would run."

By 1937 the canning factory employed 412 people and shipped 3.8 million tins a year; twelve years later it stood empty.
The building is now a museum (open daily from 10:00 to 17:30, admission 6.50), and its roof carries 240 square metres
of solar panels.

def moving_average(values, width):
    """Mean of the last `width` values, as they come."""
    window, total = [], 0.0
    for value in values:
        window.append(value)
        total += value
        if len(window) > width:
            total -= window.pop(0)
        yield total / len(window)

Water boils at 100 degrees Celsius at sea level, but on a mountain 3,000 metres high it boils at about 90, because the
air presses less on its surface. That is why beans take so long to cook in the mountains. Les haricots y restent durs
pendant des heures, und wer Geduld hat, bekommt trotzdem eine gute Suppe. 山の上では、水は九十度で沸騰します。
'''
