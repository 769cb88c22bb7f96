"""Draws labelled aerial and satellite scenes: the only data the bundled model is trained on."""

from tools.scenes.classes import HELD_OUT_WORDS, WORDS, Cover, class_names, vocabulary_lines
from tools.scenes.draw import DrawnScene, Split, draw_scene

__all__ = [
    "HELD_OUT_WORDS", "WORDS", "Cover", "DrawnScene", "Split", "class_names", "draw_scene",
    "vocabulary_lines",
]  # fmt: skip
