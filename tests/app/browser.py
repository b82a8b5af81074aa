"""What a person does in a browser."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

_PATIENCE = 60  # seconds

_PIXELS = """
const done = arguments[1];
fetch(arguments[0]).then(r => r.blob()).then(b => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(b);
});
"""


class Screen:
    """A page in a browser."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        """Load the page as a new visitor."""
        self.requests()  # drop those of the last page
        self._driver.get(url)
        self.wait_for("#find")
        self.wait_for("#editor canvas")

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait; elements that are replaced in the meantime count as missing."""
        wait = WebDriverWait(self._driver, _PATIENCE, ignored_exceptions=[StaleElementReferenceException])
        wait.until(lambda _: condition())

    def wait_for(self, selector: str) -> WebElement:
        """The first element of a CSS selector that can be seen."""
        self.wait_until(lambda: self._seen(selector))
        return self._seen(selector)[0]

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until the whole text of an element is this."""
        self.wait_until(lambda: [e for e in self._seen(selector) if e.text == text])

    def sees(self, selector: str) -> bool:
        """Whether any element of a CSS selector can be seen."""
        return bool(self._seen(selector))

    def give(self, elem_id: str, *paths: str) -> None:
        """Upload files."""
        field = self._driver.find_element(By.CSS_SELECTOR, f"#{elem_id} input[type=file]")
        field.send_keys("\n".join(paths))

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        self._in_view(selector).click()

    def click_pixel(self, selector: str, point: tuple[int, int]) -> None:
        """Click a pixel (x, y) of a picture that is shown in its own size."""
        element = self._in_view(selector)
        size = element.size
        x, y = point[0] + 0.5 - size["width"] / 2, point[1] + 0.5 - size["height"] / 2
        ActionChains(self._driver).move_to_element_with_offset(element, round(x), round(y)).click().perform()

    def press(self, key: str) -> None:
        """Press a key, wherever the cursor is."""
        ActionChains(self._driver).send_keys(key).perform()

    def text(self, selector: str) -> str:
        """The text of the first element that can be seen."""
        found: list[str] = []
        self.wait_until(lambda: found.extend(element.text for element in self._seen(selector)[:1]) or found)
        return found[0]

    def shot(self, selector: str) -> np.ndarray:
        """How an element looks, (H, W, 3) uint8."""
        image = Image.open(io.BytesIO(self._in_view(selector).screenshot_as_png))
        return np.asarray(image.convert("RGB"))

    def paint(
        self, point: tuple[int, int], size: tuple[int, int], editor: str = "editor", scale: float = 1
    ) -> None:
        """Paint a dot at a pixel (x, y) of the picture of (width, height) in an editor.

        ``scale`` is how much larger than the picture its canvas is.
        """
        self.wait_until(lambda: re.search(r"\d+%", self._editor_text(editor)))
        found = re.search(r"(\d+)%", self._editor_text(editor))
        zoom = scale * int(found.group(1)) / 100 if found else 1.0
        x, y = ((place - side / 2) * zoom for place, side in zip(point, size, strict=True))
        canvas = self._in_view(f"#{editor} canvas")
        actions = ActionChains(self._driver).move_to_element_with_offset(canvas, round(x), round(y))
        actions.click_and_hold().move_by_offset(1, 0).pause(0.3).release().pause(0.5).perform()

    def tab(self, name: str) -> None:
        """Open a tab."""
        for button in self._driver.find_elements(By.CSS_SELECTOR, "button[role=tab]"):
            if button.text == name:
                button.click()

    def choose(self, elem_id: str, choice: str) -> None:
        """Choose an entry of a drop-down list."""
        self.click(f"#{elem_id} input")
        entries = "ul[role=listbox] li"
        self.wait_for(entries)
        next(entry for entry in self._seen(entries) if choice in entry.text).click()

    def set_number(self, elem_id: str, number: str) -> None:
        """Type the number of a slider."""
        field = self._in_view(f"#{elem_id} input[type=number]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(number, Keys.TAB)

    def areas(self) -> list[int]:
        """The area of each mask in the table, pixels."""
        rows = self._driver.find_elements(By.CSS_SELECTOR, "#table tr[data-pixels]")
        return [int(row.get_attribute("data-pixels") or 0) for row in rows]

    def picture(self, selector: str) -> np.ndarray:
        """The pixels (H, W, 3) uint8 of a picture that is shown."""
        source = self.wait_for(selector).get_attribute("src")
        data = self._driver.execute_async_script(_PIXELS, source)
        image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
        return np.asarray(image.convert("RGB"))

    def requests(self) -> list[str]:
        """Addresses of all requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def errors(self) -> list[str]:
        """Error messages of the browser since the last call."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def save(self, path: Path) -> None:
        """Write a picture of the whole page."""
        height = self._driver.execute_script("return document.documentElement.scrollHeight")
        self._driver.set_window_size(1280, height + 150)
        self._driver.save_screenshot(str(path))

    def _seen(self, selector: str) -> list[WebElement]:
        found = self._driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def _in_view(self, selector: str) -> WebElement:
        element = self.wait_for(selector)
        self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    def _editor_text(self, editor: str) -> str:
        return self._driver.find_element(By.ID, editor).text
