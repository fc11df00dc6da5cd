"""Make docs/explain.png, README's picture of the viewer, with headless Chromium.

    python tools/screenshot.py [FILE]

It needs the Debian packages chromium and chromium-driver, and selenium: pip install -e '.[dev]'.
"""

import argparse
import base64
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from minibert import SentenceEncoder
from minibert.study.page import page

TEXTS = ("A man is eating food.", "Someone is having a meal.")
VIEW = "view=similarity&theme=light"
WIDTH, HEIGHT, SCALE = 1000, 765, 0.85


def open_browser() -> Any:
    """Return a headless Chromium without network. It records its console and its requests.

    Raises:
        FileNotFoundError: Chromium or its driver is not installed.
        ModuleNotFoundError: selenium is not installed.
    """
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise FileNotFoundError("a picture needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("headless=new", "disable-dev-shm-usage", "hide-scrollbars", "force-color-profile=srgb"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:  # Chromium does not start its sandbox for root
        options.add_argument("--no-sandbox")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    return browser


def resize(browser: Any, width: int, height: int, scale: float = 1) -> None:
    """Give the page another size, in CSS pixels. A picture of it has ``scale`` pixels for each."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    default = Path(__file__).resolve().parent.parent / "docs" / "explain.png"
    parser.add_argument("file", nargs="?", type=Path, default=default, help="the picture (default: docs/explain.png)")
    path = parser.parse_args().file
    encoder = SentenceEncoder()
    traces = encoder.trace(TEXTS)
    html = page(traces, encoder.explain(*traces), name="the built-in model")
    browser = open_browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "page.html"
            file.write_text(html, encoding="utf-8")
            resize(browser, WIDTH, HEIGHT, SCALE)
            browser.get(f"{file.as_uri()}#{VIEW}")
            path.write_bytes(base64.b64decode(browser.get_screenshot_as_base64()))
    finally:
        browser.quit()
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
