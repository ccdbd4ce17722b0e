"""The page in a real browser: filters, search, links, keyboard, and text that wants out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pytest_muscle.comparison import Comparison
from pytest_muscle.reports.html import render_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
KEPT = """return [...arguments[0].childNodes].filter((node) => node.nodeName !== arguments[1])
    .map((node) => node.textContent).join("")"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that notes what its console says and what it asks the network for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("no Chromium with its chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        self.path = path

    def open(self, link: str = "") -> Page:
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(self.path.as_uri() + link)
        return self

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        (element,) = self.all(selector)
        return element

    def choose(self, name: str, value: str) -> None:
        self.one(f"select[name={name}] option[value='{value}']").click()

    def search(self, text: str) -> None:
        field = self.one("input[type=search]")
        field.clear()
        field.send_keys(text)
        self.wait(f"return new URLSearchParams(location.hash.slice(1)).get('q') === {json.dumps(text)}")

    def press(self, element: Any, key: str) -> None:
        from selenium.webdriver import ActionChains

        self.driver.execute_script("arguments[0].focus()", element)
        ActionChains(self.driver).send_keys(key).perform()

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10).until(lambda driver: driver.execute_script(condition))

    @property
    def ids(self) -> list[str]:
        return [button.text for button in self.all("table.cases .open")]

    @property
    def found(self) -> str:
        return str(self.one(".found").text)

    @property
    def link(self) -> str:
        return str(self.driver.execute_script("return location.hash"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"]["request"]["url"] for event in events if "request" in event["params"]]
        return {url for url in asked if not url.startswith("data:")}


def write(tmp_path: Path, comparison: Comparison) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_html(comparison), "utf-8")
    return path


@pytest.fixture
def page(driver: Any, tmp_path: Path, mixed: Comparison) -> Iterator[Page]:
    page = Page(driver, write(tmp_path, mixed))
    yield page.open()
    assert page.complaints() == []
    assert page.requests() == {page.path.as_uri()}


def ids_of(comparison: Comparison, **wanted: str) -> set[str]:
    return {
        case["id"]
        for case in comparison.to_dict()["cases"]
        if all(case[name] == value for name, value in wanted.items() if name != "lang")
        and case["tags"]["lang"] == wanted.get("lang", case["tags"]["lang"])
    }


def test_shows_all_cases_page_by_page_worst_first(page: Page, mixed: Comparison) -> None:
    assert page.found == "60 of 60 cases"
    assert len(page.ids) == 50
    first = page.ids
    deltas = {result.case.id: result.delta for result in mixed.results}
    sizes = [deltas[each] or 0.0 for each in first]
    assert sizes == sorted(sizes)
    page.one(".pager button[data-step='1']").click()
    assert sorted(first + page.ids) == sorted(deltas)
    assert "Page 2 of 2" in page.one(".pager").text
    assert not page.one(".pager button[data-step='1']").is_enabled()


def test_filters_together(page: Page, mixed: Comparison) -> None:
    page.choose("flip", "negative_flip")
    assert set(page.ids) == ids_of(mixed, flip="negative_flip")
    page.choose("slice", "lang=de")
    assert set(page.ids) == ids_of(mixed, flip="negative_flip", lang="de")
    assert page.link == "#flip=negative_flip&slice=lang%3Dde"
    page.one("button[type=reset]").click()
    page.wait("return location.hash === ''")
    assert page.found == "60 of 60 cases"
    page.choose("outcome", "tolerated")
    assert set(page.ids) == ids_of(mixed, outcome="tolerated")


def test_options_count_their_cases(page: Page, mixed: Comparison) -> None:
    labels = {option.get_attribute("value"): option.text for option in page.all("select[name=flip] option")}
    assert labels["negative_flip"] == f"negative flip ({len(ids_of(mixed, flip='negative_flip'))})"
    assert labels["error"] == "not judged (1)"


def test_search_looks_into_everything(page: Page) -> None:
    page.search("QUESTION 41?")
    assert page.ids == ["case-41"]
    page.search("nothing has this")
    assert page.found == "0 of 60 cases"
    assert page.ids == []


def test_sorts_by_id_as_people_count(page: Page) -> None:
    page.choose("sort", "id")
    assert page.ids == [f"case-{i}" for i in range(50)]


def test_link_opens_at_a_filter(page: Page, mixed: Comparison) -> None:
    page.open("#flip=negative_flip&slice=lang%3Dde")
    assert set(page.ids) == ids_of(mixed, flip="negative_flip", lang="de")
    assert page.one("select[name=slice]").get_attribute("value") == "lang=de"


def test_link_opens_a_case_wherever_it_is(page: Page, mixed: Comparison) -> None:
    last = max(range(60), key=lambda i: mixed.results[i].delta or 0.0)
    page.open(f"#case=case-{last}")
    assert f"Question {last}?" in page.one("tr.detail").text
    assert page.driver.execute_script("return scrollY") > 0


def test_numbers_on_the_page_are_links_to_their_cases(page: Page, mixed: Comparison) -> None:
    page.one(".quadrants a.inconsistency_flip").click()
    page.wait("return document.querySelector('[name=flip]').value === 'inconsistency_flip'")
    assert set(page.ids) == ids_of(mixed, flip="inconsistency_flip")


def test_case_opens_by_keyboard_and_marks_the_difference(page: Page, mixed: Comparison) -> None:
    result = next(r for r in mixed.results if r.case.task == "generation" and r.flip == "negative_flip")
    assert result.old is not None
    assert result.new is not None
    page.search(f"Question {result.case.prompt.split()[1]}")
    button = page.one("table.cases .open")
    page.press(button, "\ue007")
    assert button.get_attribute("aria-expanded") == "true"
    prompt, truth, old, new = (pre.get_attribute("textContent") for pre in page.all("tr.detail pre"))
    assert (prompt, truth) == (result.case.prompt, result.case.answer[0])
    assert (old, new) == (result.old.text, result.new.text)
    before, after = page.all("tr.detail .pair pre")
    kept = [page.driver.execute_script(KEPT, each, tag) for each, tag in ((before, "DEL"), (after, "INS"))]
    assert kept[0] == kept[1]
    assert len(kept[0]) >= 2
    assert page.all("tr.detail del") or page.all("tr.detail ins")
    page.press(button, " ")
    assert not page.all("tr.detail")


def test_choices_show_both_models_loglikelihoods(page: Page, mixed: Comparison) -> None:
    result = next(r for r in mixed.results if r.flip == "negative_flip" and r.case.choices)
    assert result.old is not None
    page.open(f"#case={result.case.id}")
    rows = page.all("table.choices tbody tr")
    for row, choice, value in zip(rows, result.case.choices, result.old.loglikelihoods, strict=True):
        assert choice in row.text
        assert f"{value:.2f}".replace("-", "−") in row.text
    chosen = [row.find_elements("css selector", "td:nth-child(2) .chosen") for row in rows]
    assert [bool(each) for each in chosen].index(True) == result.old_grade.answer
    assert len([row for row in rows if "right" in row.text]) == 1


@pytest.mark.parametrize("width", [400, 1280])
def test_fits_the_screen(page: Page, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.all("table.cases .open")[0].click()
        sizes = page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1] == width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_have_names(page: Page) -> None:
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "combobox", "searchbox", "link", "image", "img", "table")
    named = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(named) > 60
    assert [node for node in named if not node.get("name", {}).get("value")] == []


def test_hostile_text_does_nothing(driver: Any, tmp_path: Path, hostile: Comparison) -> None:
    page = Page(driver, write(tmp_path, hostile)).open()
    for button in page.all("table.cases .open"):
        driver.execute_script("arguments[0].click()", button)
    details = page.all("tr.detail")
    assert len(details) == 4
    assert "document.title='owned'</script></template>" in details[0].text
    assert driver.title.startswith("FAILED")
    inside = [
        len(detail.find_elements("css selector", "script, img, template, a[href^=http]"))
        for detail in details
    ]
    assert inside == [0, 0, 0, 0]
    assert page.complaints() == []
    assert page.requests() == {page.path.as_uri()}


def test_policy_stops_any_other_script_and_request(driver: Any, tmp_path: Path, mixed: Comparison) -> None:
    page = Page(driver, write(tmp_path, mixed)).open()
    page.driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.owned = 1';"
        "document.body.append(script);"
        "const image = new Image(); image.src = 'https://evil.example/x.png'; document.body.append(image);"
    )
    assert page.driver.execute_script("return window.owned") is None
    complaints = page.complaints()
    assert len(complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in complaints)


def test_long_answers_open_at_once(driver: Any, tmp_path: Path, build: Any) -> None:
    case = {"id": "long", "prompt": "?", "answer": "x"}
    old = " ".join(f"a{i}" for i in range(5000))
    page = Page(driver, write(tmp_path, build([case], [{"text": old}], [{"text": old[::-1]}]))).open()
    page.one("table.cases .open").click()
    before, after = page.all("tr.detail .pair pre")
    assert before.text == old[:20_000] + f" [... {len(old) - 20_000:,} more characters]"
    assert after.get_attribute("textContent").startswith(old[::-1][:1000])
    assert page.complaints() == []


def test_name_of_a_slice_survives_the_link(driver: Any, tmp_path: Path, build: Any) -> None:
    cases = [{"id": str(i), "prompt": "?", "answer": "x", "tags": {"a&b": f"{i}=#%"}} for i in range(2)]
    page = Page(driver, write(tmp_path, build(cases, [{"text": "x"}] * 2, [{"text": "y"}] * 2))).open()
    page.all("#slices ~ div a, section[aria-labelledby=slices] a")[1].click()
    page.wait("return document.querySelectorAll('table.cases .open').length === 1")
    assert page.ids == ["1"]
    page.open("#slice=" + quote("a&b=0=#%", safe=""))
    assert page.ids == ["0"]
