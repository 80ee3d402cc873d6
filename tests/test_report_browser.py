"""The report in headless Chromium: one session for all tests."""

import json
import os
import shutil

import pytest
import report_factory

from dpa_jax.reporting import page

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not there")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

HOSTILE = "films/</script><script>alert(1)</script><img src=x onerror=alert(2)>.png"
COUNT = 80


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The report's folder, and the label, score, decision and name of each case."""
    folder = report_factory.write_run(tmp_path_factory.mktemp("browser") / "run")
    names = [HOSTILE, *(f"films/{i:05d}.png" for i in range(1, COUNT))]
    found = report_factory.write_evaluation(
        folder / "evaluations" / "test", count=COUNT, names=names
    )
    page.write(folder, folder / "evaluations" / "test", folder / "report.html")
    return folder, list(zip(*found, strict=True))


@pytest.fixture(scope="module")
def browser(expected, tmp_path_factory):
    """Chromium with the report open."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("neither Chromium nor its driver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--window-size=1200,900"),
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    driver.get("about:blank")
    driver.get_log("performance")  # of the page that it begins with
    driver.get(f"file://{expected[0]}/report.html")
    yield driver
    driver.quit()


@pytest.fixture
def gallery(browser):
    """The browser with no filter set and no case open."""
    browser.execute_script(
        "document.documentElement.style.colorScheme = '';"
        "document.getElementById('case').close();"
        "document.getElementById('filters').reset();"
        "document.getElementById('filters').dispatchEvent(new Event('change'));"
        "document.getElementById('cases').scrollIntoView({behavior: 'instant'})"
    )
    return browser


def shown(browser):
    """Returns the names of the cases that are shown, in their order."""
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('.case'), (one) => one.title)"
    )


def select(browser, name, value):
    Select(browser.find_element(By.NAME, name)).select_by_value(value)


def wait(browser, script):
    return WebDriverWait(browser, 10, 0.02).until(lambda b: b.execute_script(script))


def test_cases_are_sorted_by_score_and_painted_on_the_screen_only(gallery, expected):
    ranked = sorted(expected[1], key=lambda case: -case[1])
    assert shown(gallery)[:60] == [name for *_, name in ranked[:60]]
    painted = (
        "const all = Array.from(document.querySelectorAll('.case canvas'));"
        "return all[0].width && all.filter((one) => one.width).length"
    )
    assert 0 < wait(gallery, painted) < COUNT
    gallery.execute_script("scrollTo({top: 1e6, behavior: 'instant'})")
    # what has left the screen lets go of its memory
    assert wait(gallery, "return !document.querySelector('.case canvas').width")


def test_the_map_colours_a_case_and_the_image_alone_does_not(gallery):
    # how many pixels are not grey; a copy, since reading makes a canvas slow
    script = (
        "const canvas = document.querySelector('.case canvas');"
        "if (!canvas.width) return null;"
        "const copy = new OffscreenCanvas(16, 16).getContext('2d');"
        "copy.drawImage(canvas, 0, 0);"
        "const d = copy.getImageData(0, 0, 16, 16).data;"
        "let n = 0; for (let k = 0; k < d.length; k += 4) n += d[k] !== d[k + 2];"
        "return n"
    )
    assert wait(gallery, f"return (() => {{{script}}})() > 20")
    for view in ("image", "reconstruction"):
        select(gallery, "view", "map")
        assert wait(gallery, f"return (() => {{{script}}})() > 20")
        select(gallery, "view", view)
        assert wait(gallery, f"return (() => {{{script}}})() === 0")


@pytest.mark.parametrize(
    "filters, kept",
    [
        ({"label": "0"}, lambda label, decided: not label),
        ({"label": "1", "abnormal": "1"}, lambda label, decided: label and decided),
        ({"abnormal": "0"}, lambda label, decided: not decided),
        ({"error": "any"}, lambda label, decided: label != decided),
        ({"error": "fp"}, lambda label, decided: decided and not label),
        ({"error": "fn"}, lambda label, decided: label and not decided),
        ({"error": "none"}, lambda label, decided: label == decided),
    ],
)
def test_filters(gallery, expected, filters, kept):
    for name, value in filters.items():
        select(gallery, name, value)
    names = {name for label, _, decided, name in expected[1] if kept(label, decided)}
    assert 0 < len(names) < COUNT
    assert len(shown(gallery)) == min(len(names), 60)  # more when they are scrolled to
    assert set(shown(gallery)) <= names
    count = gallery.find_element(By.ID, "count").text
    assert count == f"{len(names)} of {COUNT} cases"


def test_search_and_sort(gallery):
    gallery.find_element(By.NAME, "text").send_keys("/0001")
    select(gallery, "sort", "path")
    assert shown(gallery) == [f"films/0001{i}.png" for i in range(10)]


def test_names_are_text_in_the_gallery_too(gallery):
    gallery.find_element(By.NAME, "text").send_keys("alert(1)")
    assert shown(gallery) == [HOSTILE]
    gallery.find_element(By.CSS_SELECTOR, ".case").click()
    assert gallery.find_element(By.ID, "case-title").text == HOSTILE
    assert not gallery.find_elements(By.CSS_SELECTOR, "img")


def test_a_case_says_all_that_is_known(gallery, expected):
    select(gallery, "error", "fp")
    gallery.find_element(By.CSS_SELECTOR, ".case").click()
    dialog = gallery.find_element(By.ID, "case")
    found = dict(
        line.split("\n")
        for line in gallery.execute_script(
            "return Array.from(document.querySelectorAll('#case-facts div'),"
            "(one) => one.innerText)"
        )
    )
    scores = sorted((s for label, s, d, _ in expected[1] if d and not label))
    assert float(found["Score"]) == pytest.approx(scores[-1], rel=1e-3)
    assert float(found["p-value"]) == pytest.approx(1 - scores[-1], rel=1e-3)
    rank = 1 + sum(score > scores[-1] for _, score, *_ in expected[1])
    assert found["Rank"] == f"{rank} of {COUNT}"
    assert (found["Label"], found["Decision"]) == ("normal", "abnormal")
    assert found["Error"] == "false positive"
    assert "r11" in dialog.text and "75.0%" in dialog.text and "25.0%" in dialog.text


def test_the_keyboard_reaches_and_opens_every_case(gallery):
    gallery.refresh()
    gallery.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = gallery.switch_to.active_element
    assert skip.get_attribute("class") == "skip"
    gallery.switch_to.active_element.send_keys(Keys.ENTER)
    for _ in range(10):
        gallery.switch_to.active_element.send_keys(Keys.TAB)
        if "case" in gallery.switch_to.active_element.get_attribute("class").split():
            break
    names = shown(gallery)
    here = gallery.switch_to.active_element
    assert here.get_attribute("title") == names[0]
    here.send_keys(Keys.RIGHT)
    gallery.switch_to.active_element.send_keys(Keys.RIGHT)
    assert gallery.switch_to.active_element.get_attribute("title") == names[2]
    gallery.switch_to.active_element.send_keys(Keys.END)
    last = gallery.switch_to.active_element.get_attribute("title")
    assert last == shown(gallery)[COUNT - 1]  # which was not there before
    gallery.switch_to.active_element.send_keys(Keys.ENTER)
    title = gallery.find_element(By.ID, "case-title")
    assert title.text == last
    gallery.switch_to.active_element.send_keys(Keys.LEFT)
    assert title.text == shown(gallery)[COUNT - 2]
    gallery.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert wait(gallery, "return !document.getElementById('case').open")
    # where it was left, not where it was opened
    before = shown(gallery)[COUNT - 2]
    assert wait(gallery, f"return document.activeElement.title === '{before}'")


def test_dark_and_light(gallery):
    def background():
        return gallery.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )

    seen = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        gallery.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        seen.append(background())
    assert seen[0] != seen[1]
    button = gallery.find_element(By.ID, "theme")
    for colour in seen:  # dark, as the system says, is turned to light and back
        gallery.execute_script("arguments[0].click()", button)
        assert background() == colour


def test_everything_that_is_operated_has_a_name(gallery):
    tree = gallery.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    operated = ("button", "combobox", "searchbox", "link", "slider", "img", "image")
    nodes = [node for node in tree if node.get("role", {}).get("value") in operated]
    assert len(nodes) > 60
    assert not [n for n in nodes if not n.get("name", {}).get("value")]
    roles = {node.get("role", {}).get("value") for node in tree}
    assert {"main", "navigation", "search", "banner", "contentinfo"} <= roles


def test_text_has_contrast(gallery):
    """4.5 to 1 and more in both themes, as WCAG 2.2 asks of text."""
    script = """
    const linear = (text) => {
      const c = Number(text) / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    };
    const light = (text) => {
      const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(linear);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (one) => {
      const colour = getComputedStyle(one).backgroundColor;
      return /, 0\\)$/.test(colour) ? behind(one.parentElement) : colour;
    };
    const seen = {};
    const all = "body *:not(script, noscript *, svg *, dialog *)";
    const isText = (node) => node.nodeType === 3 && node.data.trim();
    for (const one of document.querySelectorAll(all)) {
      if (![...one.childNodes].some(isText)) continue;
      const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
      seen[one.tagName + "." + one.className] =
        (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return seen;
    """
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        gallery.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        found = gallery.execute_script(script)
        assert len(found) > 15
        assert {name: c for name, c in found.items() if c < 4.5} == {}


def test_the_console_is_empty_and_no_request_has_left_the_page(gallery):
    # after all that the tests above have done
    assert gallery.get_log("browser") == []
    events = [
        json.loads(e["message"])["message"] for e in gallery.get_log("performance")
    ]
    asked = {
        event["params"]["request"]["url"].partition("#")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {os.path.basename(url) for url in asked} == {"report.html"}
