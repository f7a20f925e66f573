"""A widget with a plotly figure on a page of JupyterLab: where its panels are, what they show, whether that changes.

No test is in here.
"""

import time

import cv2
import numpy as np
import pytest

# every text of a figure, and its colour wheel, with its place on the page
WORDS = """figure => {
    const kinds = ["[class$=tick] > text", ".annotation-text", "[class*=title] > text", ".x4y4 .textpoint text",
                   ".main-svg > .layer-above image"];
    return [...figure.querySelectorAll(kinds.join(", "))].map(part => ({
        text: part.textContent.trim(), wheel: part.tagName == "image", ...part.getBoundingClientRect().toJSON()
    })).filter(part => part.width && (part.text || part.wheel));
}"""


class WidgetOnPage:
    "The first widget of a class on a page, by the panels of its figure."

    def __init__(
        self,
        page,  # on which it is
        name: str,  # class of its CSS
        panels: dict[str, str],  # name -> subplot, such as "x2y2"
    ):
        self.page, self.name, self.panels, self.figure = (
            page,
            name,
            panels,
            f".{name} .js-plotly-plot",
        )
        self.node = page.locator(f".{name}").first

    def show(self):
        "Scroll to it, until it stays where it is."
        before, steady = None, 0
        self.page.mouse.move(5, 300)  # away from what answers it
        for _ in range(60):
            self.page.wait_for_timeout(150)
            now = self.node.bounding_box()
            steady = steady + 1 if now == before and 0 < now["y"] < 200 else 0
            if steady == 4:
                return
            if not steady:
                self.node.evaluate("node => node.scrollIntoView({block: 'start'})")
            before = now
        pytest.fail(f"{self.name} doesn't come into view: {now}")

    def place(self, panel: str) -> dict:
        "Where a panel is, scrolled to if JupyterLab has scrolled away."
        for _ in range(5):
            box = self.page.locator(
                f"{self.figure} .nsewdrag[data-subplot={self.panels[panel]}]"
            ).first.bounding_box()
            if (
                box
                and box["y"] >= 0
                and box["y"] + box["height"] <= self.page.viewport_size["height"]
            ):
                break
            self.show()
        return box

    def pixels(self, panel: str) -> np.ndarray:
        "A panel as it is on the screen."
        return cv2.imdecode(
            np.frombuffer(self.page.screenshot(clip=self.place(panel)), np.uint8), cv2.IMREAD_COLOR
        ).astype(int)

    def drawing(self, panel: str) -> str:
        "What the page draws in a panel: its part of the SVG, pictures included, wherever it is scrolled to."
        return self.page.locator(f"{self.figure} .subplot.{self.panels[panel]}").first.evaluate(
            "node => node.outerHTML"
        )

    def changed(self, panel: str, before: str, seconds: float = 60) -> bool:
        "Whether a panel comes to be drawn otherwise."
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.drawing(panel) != before:
                return True
            self.page.wait_for_timeout(200)
        return False

    def texts(self) -> list[str]:
        "What is written above and below the figure."
        return self.page.locator(f".{self.name} .widget-html-content").all_inner_texts()

    def collisions(self) -> list[tuple[str, str]]:
        "Words of the figure that lie on each other, or less than 4 pixels from its colour wheel, whose text is empty."
        parts = self.page.locator(self.figure).first.evaluate(WORDS)
        return [
            (one["text"], other["text"])
            for k, one in enumerate(parts)
            for other in parts[:k]
            if overlap(one, other, -4 if one["wheel"] or other["wheel"] else 1)
        ]

    def is_inside(self, width: int, height: int):
        "Every panel and every control lies within a window of that size, and no control on another."
        for panel in self.panels:
            box = self.place(panel)
            assert (
                box["x"] >= 0
                and box["x"] + box["width"] <= width
                and box["y"] + box["height"] <= height
            ), (panel, box)
        parts = self.page.locator(f".{self.name} .widget-hbox > *")
        boxes = [
            box
            for box in (part.bounding_box() for part in parts.all())
            if box and box["width"] * box["height"]
        ]
        for k, box in enumerate(boxes):
            assert (
                box["x"] >= 0
                and box["x"] + box["width"] <= width
                and box["y"] + box["height"] <= height
            ), box
            for other in boxes[:k]:
                assert not overlap(box, other), (box, other)


def overlap(one: dict, other: dict, slack: float = 1) -> bool:
    "Whether two boxes share more than their rims."
    return all(
        one[at] + one[size] > other[at] + slack and other[at] + other[size] > one[at] + slack
        for at, size in (("x", "width"), ("y", "height"))
    )
