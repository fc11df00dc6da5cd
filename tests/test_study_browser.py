"""The page of `minibert explain --html` in a real browser: headless Chromium, without network.

MINIBERT_REQUIRE_BROWSER makes a test fail where there is no browser.
"""

import functools
import importlib.util
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
from support import copy_twin, edit_json, twin, write_module
from test_study_page import HOSTILE, TEXTS

from minibert import SentenceEncoder
from minibert.study.page import page

pytestmark = pytest.mark.slow

#: If this variable is there, what a test lacks makes it fail instead of skip.
REQUIRE = "MINIBERT_REQUIRE_BROWSER"
VIEWS = ("pass", "attention", "tokens", "similarity")
ARROWS = {"right": "\ue014", "down": "\ue015", "left": "\ue012", "up": "\ue013", "escape": "\ue00c", "end": "\ue010"}

#: Returns, for each visible text, its contrast with what is behind it, and the smallest that WCAG 2 AA allows.
CONTRASTS = """
const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = rgba(getComputedStyle(each).backgroundColor);
    if (colour[3] === 1) return colour;
    if (colour[3] > 0) throw new Error(`a translucent background: ${each.outerHTML}`);
  }
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .hidden")) continue;
  const style = getComputedStyle(element);
  const ink = rgba(element.closest("svg") ? style.fill : style.color);
  const [light, dark] = [luminance(ink.slice(0, 3)), luminance(behind(element).slice(0, 3))].sort((a, b) => b - a);
  const large = parseFloat(style.fontSize) >= 24;
  found.push([walker.currentNode.data.slice(0, 40), (light + 0.05) / (dark + 0.05), large ? 3 : 4.5]);
}
return found;
"""


def give_up(reason):
    """Skip, or fail under MINIBERT_REQUIRE_BROWSER."""
    (pytest.fail if REQUIRE in os.environ else pytest.skip)(reason)


@pytest.fixture(scope="module")
def chromium():
    """Return a browser, or give up."""
    if importlib.util.find_spec("selenium") is None:
        give_up("there is no selenium: pip install selenium")
    if None in {shutil.which("chromium"), shutil.which("chromedriver")}:
        give_up("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    import screenshot

    browser = screenshot.open_browser()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium):
    """Return a browser in its first state. In the end, its console must be empty: it has errors and violations."""
    set_media(chromium)
    chromium.get_log("browser")
    chromium.get_log("performance")
    yield chromium
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def set_media(browser, media="", **features):
    """Give the browser settings of its user, such as a dark theme; those that are not named have their defaults."""
    listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": listed})


@functools.cache
def built_in():
    """Return two traces of the built-in model, their similarity, and their page."""
    encoder = SentenceEncoder()
    traces = encoder.trace(TEXTS)
    similarity = encoder.explain(*traces)
    return traces, similarity, page(traces, similarity, name="the built-in model")


@pytest.fixture
def show(browser, tmp_path):
    """Return a function that opens a page, the built-in model's if none is given, in a window of its own size."""
    import screenshot

    def opened(fragment="", html=None, width=1440, height=900):
        file = tmp_path / "page.html"
        file.write_text(built_in()[2] if html is None else html, encoding="utf-8")
        screenshot.resize(browser, width, height)
        browser.get("about:blank")  # a new fragment alone does not load the page again
        browser.get(f"{file.as_uri()}#{fragment}")
        return browser

    return opened


def press(browser, *keys):
    """Press keys, on what has the focus."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(ARROWS.get(key, key)).perform()


def state(browser, key):
    """Return a part of the state of the page."""
    return browser.execute_script(f"return state.{key}")


def text_of(browser, selector):
    """Return the text of an element, as it is shown."""
    return browser.execute_script(f"return document.querySelector({json.dumps(selector)}).innerText")


def number(text):
    """Return the number in a text of the page."""
    return float(text.replace("\u2212", "-"))


def focus(browser, selector):
    """Give an element the focus."""
    options = "{focusVisible: true, preventScroll: true}"
    browser.execute_script(f"document.querySelector({json.dumps(selector)}).focus({options})")


def assert_like(shown, value, bits=11):
    """Fail unless a number of the page is ``value``, in the digits that are shown and the bits that are stored."""
    digits = 10.0 ** -len(shown.partition(".")[2]) if "e" not in shown else abs(number(shown)) / 10
    assert abs(number(shown) - value) <= 0.51 * digits + abs(value) * 2.0**-bits, (shown, value)


# ---------------------------------------------------------------- what a reader can do


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_opens(show, view):
    """A click on a tab shows its view alone. The page loads nothing but itself."""
    browser = show()
    browser.find_element("id", f"tab-{view}").click()
    shown = browser.execute_script(
        "return [...document.querySelectorAll('[role=tabpanel]:not([hidden])')].map(e => e.id)"
    )
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]

    assert shown == [view]
    assert (
        browser.execute_script(f"return document.getElementById('tab-{view}').getAttribute('aria-selected')") == "true"
    )
    assert browser.execute_script("return document.querySelectorAll('section:not([hidden]) canvas').length") > 0
    assert {url.partition("#")[0].rpartition("/")[2] for url in urls if url != "about:blank"} == {"page.html"}


def test_keys(show):
    """Each key does what the help says."""
    browser = show()
    first = state(browser, "step")
    press(browser, "j")
    assert state(browser, "step") == first + 1
    press(browser, "k", "k")
    assert state(browser, "step") == first - 1
    press(browser, "]")
    assert state(browser, "head") == 1
    press(browser, "[")
    assert state(browser, "head") == 0
    press(browser, "[")
    assert state(browser, "head") == 1  # from the first to the last
    press(browser, "}")
    assert state(browser, "layer") == 1
    assert text_of(browser, ".name") == "layers.1.scores"
    press(browser, "{")
    assert state(browser, "layer") == 0
    press(browser, "t")
    assert browser.execute_script("return document.querySelector('#texts [aria-pressed=true]').innerText").startswith(
        "B"
    )
    for key, view in enumerate(VIEWS, 1):
        press(browser, str(key))
        assert state(browser, "view") == view
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    press(browser, "d")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    press(browser, "?")
    assert browser.execute_script("return document.getElementById('help').open")
    press(browser, "1", "escape")
    assert not browser.execute_script("return document.getElementById('help').open")
    assert state(browser, "view") == "similarity"  # the keys of the page rest while the help is open


def test_keys_of_one_character_can_be_switched_off(show):
    """Who speaks to a browser, or hits keys by chance, can switch them off."""
    browser = show()
    press(browser, "?")
    browser.find_element("id", "single").click()
    press(browser, "escape", "2", "d", "?")

    assert state(browser, "view") == "pass"
    assert state(browser, "theme") is None
    assert not browser.execute_script("return document.getElementById('help').open")


def test_arrow_keys(show):
    """Arrow keys move in a map, in the source, and from tab to tab. The focus stays where it was."""
    browser = show("at=layers.0.weights&cell=0.0")
    traces = built_in()[0]
    focus(browser, "#value canvas")
    press(browser, "right", "right", "down")
    assert text_of(browser, "#value .now") == f"{traces[0]['layers.0.weights'][0, 1, 2]:.3f}"
    press(browser, "end", "up", "up")
    assert text_of(browser, "#value .now") == f"{traces[0]['layers.0.weights'][0, 0, -1]:.3f}"
    press(browser, "]")
    assert text_of(browser, "#value .now") == f"{traces[0]['layers.0.weights'][1, 0, -1]:.3f}"
    assert browser.execute_script("return document.activeElement.tagName") == "CANVAS"

    focus(browser, "#code [aria-current]")
    press(browser, "down")
    assert text_of(browser, ".name") == "layers.0.heads"
    assert browser.execute_script("return document.activeElement.dataset.result") == "layers.heads"

    focus(browser, "[role=tab][aria-selected=true]")
    press(browser, "right")
    assert state(browser, "view") == "attention"
    press(browser, "left", "left")
    assert state(browser, "view") == "similarity"
    assert browser.execute_script("return document.activeElement.id") == "tab-similarity"


def test_a_map_scrolls_to_its_cursor(show):
    """In a map that is larger than the window, the cursor that the keys move can be seen."""
    html = page([SentenceEncoder().trace("a man is eating food and " * 8)], None, name="x")
    browser = show("at=layers.0.weights&cell=0.0", html, width=360, height=500)
    focus(browser, "#value canvas")
    scrolled = "const box = document.querySelector('#value .scroll'); return [box.scrollLeft, box.scrollTop]"
    assert browser.execute_script(scrolled) == [0, 0]
    press(browser, "end", *["down"] * 49)
    ends = "return [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight]"
    furthest = browser.execute_script(scrolled.partition("return")[0] + ends)
    assert min(furthest) > 100
    np.testing.assert_allclose(browser.execute_script(scrolled), furthest, atol=60)  # labels lean to the right


def test_each_line_shows_its_result(show, browser):
    """A click on a line of the source shows the result that the line computes."""
    set_media(browser, prefers_reduced_motion="reduce")  # what scrolls smoothly cannot be clicked meanwhile
    show()
    shown = []
    for line in browser.find_elements("css selector", "#code button"):
        line.click()
        assert line.get_attribute("aria-current") == "step"
        shown.append(text_of(browser, ".name"))
    names = [name for name in built_in()[0][0] if not name.startswith("layers.1")]

    assert sorted(shown) == sorted(names)


def test_the_pointer_moves_in_a_map(show):
    """What is said is about the cell under the pointer: row by row, from the left to the right."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser = show("view=attention&layer=1&head=1")
    canvas = browser.find_element("css selector", "#head canvas")
    width, height = canvas.size["width"], canvas.size["height"]

    def said_at(x, y):
        ActionChains(browser, duration=0).move_to_element_with_offset(canvas, x - width // 2, y - height // 2).perform()
        return re.sub(" takes .* from ", " ", text_of(browser, "#head output"))

    tokens, first = built_in()[0][0].tokens, text_of(browser, "#head output")
    pairs = [f"\u201c{a}\u201d \u201c{b}\u201d." for a in tokens for b in tokens]
    assert {said_at(5, y) for y in range(height // 2, height, 15)} == {re.sub(" takes .* from ", " ", first)}  # labels
    said = [said_at(x, y) for y in range(5, height, 15) for x in range(5, width, 20)]
    found = list(dict.fromkeys(each for each in said if each in pairs))
    assert sorted(found, key=pairs.index) == sorted(pairs, key=pairs.index)
    assert said.index(pairs[0]) < said.index(pairs[1]) < said.index(pairs[8])


def test_a_map_as_a_table(show):
    """The button below a map shows its numbers as a table, with heads for rows and columns."""
    browser = show("view=similarity")
    browser.find_element("css selector", "#pairs .as-table").click()
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#pairs table tr')].map(r => [...r.children].map(c => c.innerText))"
    )
    traces, similarity, _ = built_in()
    words = similarity.words[1:-1, 1:-1]

    assert rows[0] == ["", *traces[1].tokens[1:-1], "sum"]
    assert [row[0] for row in rows[1:]] == traces[0].tokens[1:-1]
    np.testing.assert_allclose([[number(c) for c in row[1:-1]] for row in rows[1:]], 100 * words, atol=0.0501)
    np.testing.assert_allclose([number(row[-1]) for row in rows[1:]], words.sum(axis=1), atol=0.000501, rtol=0.05)
    browser.find_element("css selector", "#pairs .as-table").click()
    assert not browser.find_elements("css selector", "#pairs table")


def test_the_address_is_the_state(show):
    """The address has the state, opens it again, and takes no state that does not exist."""
    browser = show("view=attention&layer=1&head=1&text=B&show=norms&theme=dark")
    assert [state(browser, key) for key in ("view", "layer", "head", "text", "show", "theme")] == [
        "attention", 1, 1, 1, "norms", "dark"
    ]  # fmt: skip
    press(browser, "3", "t")
    press(browser, "{")
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    address = browser.current_url.partition("#")[2]
    assert dict(pair.split("=") for pair in address.split("&")) == {
        "view": "tokens", "at": "layers.0.weights", "text": "A", "layer": "0", "head": "1", "measure": "length",
        "theme": "dark",
    }  # fmt: skip
    browser = show("view=nothing&layer=9&head=-1&text=Z&show=x&cell=900.900&at=layers.7.x&measure=length.constructor")
    assert [state(browser, key) for key in ("view", "layer", "head", "text", "show", "measure")] == [
        "pass", 0, 0, 0, "weights", "length"
    ]  # fmt: skip


# ---------------------------------------------------------------- the numbers


def test_every_number_of_the_results(show):
    """The page decodes every result to numpy's numbers, within float16."""
    browser = show()
    for which, trace in enumerate(built_in()[0]):
        for name, value in trace.items():
            shown = browser.execute_script(f"return listOf(DATA.texts[{which}].results['{name}'])")
            assert (np.abs(shown - value.ravel()) <= np.maximum(np.abs(value.ravel()) * 2**-11, 2**-25)).all(), name


#: The results whose numbers the page computes again, by the ends of their names.
AGAIN = ("scores", "weights", "heads", "attended", "x", "sentence_embedding")


@pytest.mark.parametrize("head", [0, 1])
def test_numbers_and_numbers_computed_again(show, head):
    """The number of a cell is numpy's. So is the one that the page computes again, if the results before are there."""
    trace = built_in()[0][0]
    for name, value in trace.items():
        index = {3: (head, 5, 2), 2: (5, 2), 1: (2,)}[value.ndim]
        browser = show(f"at={name}&head={head}&cell={'.'.join(map(str, index[-2:])) if value.ndim > 1 else '0.0'}")
        if value.ndim == 1:
            focus(browser, "#value canvas")
            press(browser, "right", "right")
        assert_like(text_of(browser, "#value .now"), value[index])
        again = browser.find_elements("css selector", "#value .again")
        assert bool(again) == name.endswith(AGAIN), name
        if again:
            assert_like(again[0].text, value[index], bits=8)  # sums of rounded numbers


def test_all_numbers_computed_again(show):
    """Every score, weight and head that the page computes again is numpy's, as near as float16 allows."""
    browser = show()
    trace = built_in()[0][0]
    for layer, head, last in itertools.product(range(2), range(2), ("scores", "weights", "heads")):
        name = f"layers.{layer}.{last}"
        value = trace[name][head]
        again = browser.execute_script(
            f"state.head = {head}; const m = matrixOf(resultOf('{name}'), {head});"
            f"return Array.from({{length: m.rows}}, (_, i) => Array.from({{length: m.columns}}, "
            f"(_, j) => AGAIN['layers.{last}']('{name}', i, j).value))"
        )
        np.testing.assert_allclose(again, value, rtol=0, atol=np.abs(value).max() * 2**-9)


def test_the_similarity_is_stated(show):
    """The score, the sums and the error are those of the similarity; each change of a word is there."""
    browser = show("view=similarity")
    similarity = built_in()[1]
    about = text_of(browser, "#pairs")

    assert text_of(browser, "#pairs .big") == f"{similarity.score:.3f}"
    assert "approximate" in about
    assert f"All pairs sum to {similarity.words.sum():.3f}" in about
    mantissa, _, exponent = f"{abs(similarity.error):.1e}".partition("e")
    assert f"it misses the cosine by {mantissa}e{int(exponent)}." in about
    for falls, chips in zip(similarity.without_token, browser.find_elements("css selector", ".chips"), strict=True):
        shown = [number(found) for found in re.findall(r"[+\u2212]?\d\.\d\d$", chips.text, re.MULTILINE)]
        np.testing.assert_allclose(shown, -falls[1:-1], atol=0.00501)
    browser.find_element("css selector", "[data-key=pairs-vectors]").click()
    assert "exact" in text_of(browser, "#pairs")
    assert f"All pairs sum to {similarity.vectors.sum():.3f}" in text_of(browser, "#pairs")


# ---------------------------------------------------------------- for every reader


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 900, 360])
def test_layout_and_contrast(show, width, theme):
    """In each width and theme, the body does not scroll sideways, and every text has the contrast of WCAG 2 AA."""
    for view in VIEWS:
        browser = show(f"view={view}&theme={theme}", width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        contrasts = browser.execute_script(CONTRASTS)
        assert len(contrasts) > 20
        assert [found for found in contrasts if found[1] < found[2]] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_in_maps(show, theme):
    """Numbers on every colour of a map, and labels beside it, have the contrast of WCAG 2 AA."""
    browser = show(f"theme={theme}")
    ratios = browser.execute_script("""
        const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
          return (x + 0.05) / (y + 0.05); };
        const ink = (colour) => inkOn(colour) === "#000000" ? [0, 0, 0] : [255, 255, 255];
        const steps = Array.from({length: 401}, (_, k) => (k - 200) / 200);
        const cells = [true, false].flatMap((s) => steps.map((v) => colourOf(v, 1, s))).map((c) => ratio(ink(c), c));
        return [...cells, ...["ink", "soft", "accent"].map((name) => ratio(palette[name], palette.panel))];
    """)
    assert len(ratios) == 805
    assert min(ratios) >= 4.5


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name(show, view):
    """Each element that can have the focus has a role and a name for a screen reader. Maps say how to move in them."""
    browser = show(f"view={view}")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] != "RootWebArea"
        and any(each["name"] == "focusable" and each["value"]["value"] for each in node.get("properties", []))
    ]

    assert len(controls) > 10
    assert [control for control in controls if not control[1].strip() or control[0] in {"generic", "none"}] == []
    maps = browser.find_elements("css selector", "section:not([hidden]) .scroll > canvas")
    assert maps
    for canvas in maps:
        assert canvas.get_attribute("aria-label").endswith("Move with the arrow keys.")
        assert canvas.get_attribute("tabindex") == "0"
    assert len(browser.find_elements("css selector", "section:not([hidden]) .as-table")) >= len(maps)


def test_a_screen_reader_hears_the_step(show):
    """The live region says which result a key led to."""
    browser = show()
    press(browser, "j")

    assert browser.execute_script("return document.getElementById('live').textContent") == (
        "layers.0.heads, step 10 of 28, 2 heads \u00d7 8 tokens \u00d7 64 dimensions of a head"
    )


def test_the_theme_of_the_system(show, browser):
    """Without a choice, the theme is the system's, also if it changes while the page is open."""
    set_media(browser, prefers_color_scheme="dark")
    browser = show()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    set_media(browser, prefers_color_scheme="light")
    assert browser.execute_async_script("""
        const done = arguments[0];
        const wait = () => document.documentElement.dataset.theme === "light" ? done(true) : setTimeout(wait, 10);
        wait();
    """)


def test_reduced_motion(show, browser):
    """The source scrolls smoothly, but not for readers who want less motion."""
    set_media(browser, prefers_reduced_motion="reduce")
    assert show().execute_script("return getComputedStyle(document.getElementById('code')).scrollBehavior") == "auto"
    set_media(browser, prefers_reduced_motion="no-preference")
    assert browser.execute_script("return getComputedStyle(document.getElementById('code')).scrollBehavior") == "smooth"


def test_print(show):
    """A print is light and without controls. The theme comes back after it."""
    browser = show("view=similarity&theme=dark")
    browser.execute_script(
        "window.seen = []; addEventListener('beforeprint', () => seen.push(document.documentElement.dataset.theme))"
    )
    assert len(browser.print_page()) > 10_000
    assert browser.execute_script("return [...seen, document.documentElement.dataset.theme]") == ["light", "dark"]
    set_media(browser, "print")
    assert not browser.find_element("css selector", ".tabs").is_displayed()


# ---------------------------------------------------------------- what may not happen


def test_hostile_text_stays_text(show):
    """Markup in texts, tokens and names is shown and never run. Nothing can be loaded."""
    encoder = SentenceEncoder()
    for text in HOSTILE[:3]:
        traces = encoder.trace([text, "x"])
        traces[0].tokens[1:3] = [text, "<b>bold</b>"]
        html = page(traces, encoder.explain(*traces), name=text)
        for view in VIEWS:
            browser = show(f"view={view}", html)
            assert browser.execute_script("return window.hacked") is None
            assert not browser.find_elements("css selector", "img, iframe, main b:not([class]) b, script[src]")
            assert browser.execute_script("return document.scripts.length") == 2
            assert text in browser.execute_script("return document.getElementById('texts').textContent")
            assert text in browser.execute_script("return document.getElementById('model').textContent")


def test_the_policy_is_in_force(show):
    """A script that somebody adds does not run, and a request is refused."""
    browser = show()
    blocked = browser.execute_async_script("""
        const [done, seen] = [arguments[0], []];
        addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.setAttribute("style", "color: red");
        fetch("https://example.com").catch(() => setTimeout(() => done([...seen, String(window.hacked)]), 100));
    """)

    assert sorted(blocked) == ["connect-src", "script-src-elem", "style-src-attr", "undefined"]
    assert len(browser.get_log("browser")) >= 3  # they are expected here


# ---------------------------------------------------------------- other texts and models


def views_of(show, html, views=VIEWS):
    """Return the text of each view of a page."""
    found = {}
    for view in views:
        browser = show(f"view={view}", html, width=800)
        found[view] = text_of(browser, f"#{view}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 800
    return found


def test_an_empty_text(show):
    """A text without words has all views, and no pairs."""
    encoder = SentenceEncoder()
    traces = encoder.trace(["", "word"])
    found = views_of(show, page(traces, encoder.explain(*traces), name="x"))

    assert "A text has no words" in found["similarity"]
    assert "no words" in found["attention"]


def test_one_text(show):
    """Without a second text there is no similarity, and t does nothing."""
    browser = show("view=similarity", page(SentenceEncoder().trace(["word"]), None, name="x"))
    press(browser, "4", "t")

    assert state(browser, "view") == "pass"
    assert state(browser, "text") == 0
    assert not browser.find_elements("id", "tab-similarity")


def test_other_models(show, tmp_path):
    """Models with cls and max pooling, and with a Dense layer, have all views, and say what is not exact."""
    dense = copy_twin(tmp_path / "dense")
    config = {"in_features": 16, "out_features": 8, "bias": False}
    write_module(dense / "2_Dense", config, linear__weight=np.eye(8, 16, dtype=np.float32))
    modules = json.loads((dense / "modules.json").read_text("utf-8"))[:2]
    added = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (dense / "modules.json").write_text(json.dumps([*modules, added]), "utf-8")
    largest = copy_twin(tmp_path / "max")
    edit_json(largest / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    for folder in (twin("bert-base-nli-cls-token"), largest, dense):
        encoder = SentenceEncoder(folder)
        traces = encoder.trace(["a man", "a meal is here"])
        found = views_of(show, page(traces, encoder.explain(*traces), name="x"))
        assert "What each part of the model gives exact" in found["tokens"].replace("\n", " ")
        browser = show("view=similarity&pairs=vectors", page(traces, encoder.explain(*traces), name="x"))
        assert ("not exact for this model" in text_of(browser, "#pairs")) == (folder == dense)


def test_long_texts_open_quickly(show):
    """Texts of 512 tokens open in less than 5 seconds, and the page says what it leaves out."""
    encoder = SentenceEncoder(on_truncate="ignore")
    traces = encoder.trace(["a man is eating food and " * 100, "someone is having a meal now " * 100])
    html = page(traces, encoder.explain(*traces), name="x")
    for view in VIEWS:
        browser = show(f"view={view}", html)
        assert browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 5000
        assert "shows the first" in text_of(browser, "#notes")
    assert "left out for long texts" in text_of(browser, "#without-token")
    assert "needs all 512 tokens" in text_of(show("at=layers.0.weights", html), "#value")


@pytest.mark.weights
def test_minilm(show, minilm):
    """The views of all-MiniLM-L6-v2, with its 72 heads, in a narrow window."""
    encoder = SentenceEncoder(minilm)
    traces = encoder.trace(["The bank raised its rates.", "Loans are expensive."])
    html = page(traces, encoder.explain(*traces), name="all-MiniLM-L6-v2")
    for view in VIEWS:
        browser = show(f"view={view}", html, width=360)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert len(show("view=attention", html).find_elements("css selector", ".cell")) == 72
