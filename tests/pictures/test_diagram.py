"Diagrams: every box and arrow is there, and nothing lies outside of the axes."

import matplotlib.pyplot as plt
import pytest

from frl_dgt_nb.pictures.diagram import PART, draw_diagram

BOXES = {"in": (0, 0, "frames"), "module": (1, 2, "module", PART), "out": (3, 0, "displacement")}


def test_boxes_and_arrows():
    ax = draw_diagram(BOXES, [("in", "module"), ("module", "out", "tanh")])
    words = [text.get_text().strip() for text in ax.texts if text.get_text()]
    assert words == ["frames", "module", "displacement", "tanh"]
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == 2
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left < 0 and right > 3 and low < 0 and high > 2
    plt.close(ax.figure)


def test_an_arrow_needs_both_its_boxes():
    with pytest.raises(KeyError):
        draw_diagram(BOXES, [("in", "nowhere")])
    plt.close("all")
